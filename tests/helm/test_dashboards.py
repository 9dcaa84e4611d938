"""Every query of every dashboard, asked of a real Prometheus about what the system really exports."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dashboard_series
import httpx
import pytest
import yaml
from prometheus_builders import prometheus
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "helm" / "dashboards").glob("*.json"))
RULES = sorted((ROOT / "helm" / "rules").glob("*.yaml"))
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs `prometheus` and `promtool` (apt-get install prometheus)",
)

END_S = 1_800_000_000
LAST_S = 3600  # of which there are samples, one every STEP_S
STEP_S = 30
GRAFANAS = {"$__rate_interval": "5m", "$__range_s": "3600", "$__range": "1h"}
UNITS = {"none", "s", "percentunit", "reqps", "cps", "h"}
_OURS = re.compile(r"\b(?:archipelago_\w+|vllm:\w+)")
_EXPORTERS = (
    dashboard_series.of_an_ingress,
    dashboard_series.of_its_keys,
    dashboard_series.of_vllm,
    dashboard_series.of_the_controller,
    dashboard_series.of_the_autoscaler,
)


def dashboard(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def queries(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where it is, what is asked, and how the answers are called."""
    for panel in panels(path):
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for note in dashboard(path)["annotations"]["list"]:
        yield note["name"], note["expr"], note["titleFormat"]


QUERIES = [(path.stem, *query) for path in FILES for query in queries(path)]


def filled(query: str) -> str:
    """As Grafana fills variables in when all values are chosen."""
    for name, value in GRAFANAS.items():
        query = query.replace(name, value)
    return re.sub(r'"\$(model|island|key)"', '".*"', query)


@pytest.fixture(scope="module")
def exported() -> dict[str, tuple[float, float]]:
    """Series of all exporters with their values before and after."""
    series: dict[str, tuple[float, float]] = {}
    for export in _EXPORTERS:
        before, after = map(_samples, export())
        series |= {name: (before.get(name, 0.0), value) for name, value in after.items()}
    return series


def _samples(text: str) -> dict[str, float]:
    samples = [one for family in text_string_to_metric_families(text + "\n") for one in family.samples]
    return {one.name + json.dumps(one.labels): one.value for one in samples}


@pytest.fixture(scope="module")
def url(exported: dict[str, tuple[float, float]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has an hour of all series, in which each goes evenly from its first to its last value."""
    folder = tmp_path_factory.mktemp("dashboards")
    lines = []
    for series, (before, after) in exported.items():
        name, labels = series[: series.index("{")], json.loads(series[series.index("{") :])
        selector = name + "{" + ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items()) + "}"
        for ago_s in range(LAST_S, -1, -STEP_S):
            lines.append(f"{selector} {after - (after - before) * ago_s / LAST_S} {END_S - ago_s}")
    text = folder / "metrics.txt"
    text.write_text("\n".join((*lines, "# EOF\n")))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(folder / "data")]
    subprocess.run([*command, "--max-block-duration=24h"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    with prometheus("prometheus", folder) as (address, _):
        yield address


def asked(url: str, query: str) -> tuple[list[dict[str, str]], str]:
    """Labels of what is answered; what Prometheus has against the query."""
    parameters: dict[str, str] = {"query": filled(query), "time": str(END_S)}
    answer = httpx.get(f"{url}/api/v1/query", params=parameters, timeout=20, trust_env=False).json()
    return [one["metric"] for one in answer.get("data", {}).get("result", ())], answer.get("error", "")


def unknown(query: str, exported: dict[str, tuple[float, float]]) -> set[str]:
    """Names that nobody exports."""
    return set(_OURS.findall(query)) - {series[: series.index("{")] for series in exported}


@needs_prometheus
@pytest.mark.parametrize(("file", "where", "query", "legend"), QUERIES, ids=lambda value: str(value)[:40])
def test_a_query_finds_what_it_asks_for(
    file: str, where: str, query: str, legend: str, url: str, exported: dict[str, tuple[float, float]]
) -> None:
    assert unknown(query, exported) == set(), (file, where)
    found, error = asked(url, query)
    assert error == ""
    assert found, "no data"
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= found[0].keys()


@needs_prometheus
@pytest.mark.parametrize("export", [one for one in _EXPORTERS if one is not dashboard_series.of_vllm])
def test_our_names_are_as_prometheus_wants_them(export: Callable[[], tuple[str, str]]) -> None:
    """Base units at the end, `_total` for counters and for nothing else, a help text for each."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=export()[1], capture_output=True, text=True, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@needs_prometheus
def test_a_wrong_query_is_noticed(url: str, exported: dict[str, tuple[float, float]]) -> None:
    assert unknown("rate(archipelago_arrival_total[5m])", exported) == {"archipelago_arrival_total"}
    assert asked(url, "sum(rate(archipelago_arrivals_total[5m])")[1]
    assert asked(url, 'archipelago_arrivals_total{modell="x"}')[0] == []


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_ask_for_what_is_exported(path: Path, exported: dict[str, tuple[float, float]]) -> None:
    rules = [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    expressions = " ".join(rule["expr"] for rule in rules)
    assert unknown(re.sub(r"\bmodel:\w+", "", expressions), exported) == set()  # without those that rules record


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_dashboard_is_what_grafana_and_people_expect(path: Path) -> None:
    found = dashboard(path)
    assert found["schemaVersion"] >= 39
    assert found["uid"] == f"archipelago-{path.stem}"
    assert found["description"]
    assert "id" not in found  # Grafana gives it
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids))
    names = {variable["name"] for variable in found["templating"]["list"]}
    assert "datasource" in names
    used = set(re.findall(r"\$\{?(\w+)", path.read_text())) - {name.strip("$") for name in GRAFANAS} - {"__all"}
    assert used == names
    for panel in panels(path):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_panels_do_not_lie_over_one_another(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(path)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_dashboards_link_to_one_another() -> None:
    uids = {dashboard(path)["uid"] for path in FILES}
    assert len(uids) == 4
    for path in FILES:
        linked = {link["url"].removeprefix("/d/") for link in dashboard(path)["links"]}
        assert linked == uids - {dashboard(path)["uid"]}
