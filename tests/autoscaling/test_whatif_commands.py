"""`archipelago whatif` as people use it: what it writes, and how it says what is wrong."""

import json
from pathlib import Path

import pytest
from cli_builders import Ran, even_trace, flags, no_network, ran, refused

__all__ = ["no_network", "ran"]  # fixtures
MODEL = "meta-llama/Llama-3.1-70B"


@pytest.fixture
def whatif(ran: Ran, tmp_path: Path) -> Ran:
    """Runs `whatif` over a short trace, with arguments replaced by those given; None leaves one out."""
    given = {
        "trace": even_trace(tmp_path, 400),
        "cluster": "1x dgx-h100",
        "source": MODEL,
        "ttft": "2s",
        "shapes": "tp4",
        "policies": "static",
        "out": tmp_path / "new" / "report.html",
    }
    return lambda *argv, **options: ran("whatif", *flags(given | options), *argv)


def test_a_trace_becomes_a_page_and_json(whatif: Ran, tmp_path: Path) -> None:
    code, output, progress = whatif("--json", initial="tp4=2")
    assert code == 0
    assert "2 x tp4 all the time would have taken 0.9 GPU-hours at 100 % attainment" in output
    assert "static: 399 requests" in progress
    assert "static: 90 %" in progress
    text = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "what --initial says ran" in text
    document = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert document["verdict"][0] in output
    assert document["ways"][0]["gpu_hours"] == pytest.approx(8 * 399 / 3600)


def test_what_initial_says_ran_is_replayed_unasked(whatif: Ran, tmp_path: Path) -> None:
    whatif("--json", initial="tp4=2", policies="no-repartition")
    document = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert [way["name"] for way in document["ways"]] == ["no-repartition", "static"]


def test_where_nothing_says_what_ran_the_start_is_told(whatif: Ran, tmp_path: Path) -> None:
    whatif()
    assert "Every run begins with 1 x tp4" in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def test_settings_are_kept_to_by_our_policies_and_that_is_told(whatif: Ran, tmp_path: Path) -> None:
    settings = tmp_path / "autoscaler.yaml"
    bounds = "schedule: [{from: 08:00, to: 09:00, timezone: Europe/Berlin, min_replicas: 2}]"
    settings.write_text(f"models: [{{model: llama, source: {MODEL}, slo: {{ttft: 2s}}, {bounds}}}]")
    whatif("--json", settings=settings, begins="2026-11-23T08:00+01:00", policies="no-repartition", initial="tp4=1")
    document = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    ours = next(way for way in document["ways"] if way["name"] == "no-repartition")
    assert ours["gpu_hours"] == pytest.approx(8 * 399 / 3600, rel=0.06), "two replicas, from the first look on"
    assert f"Archipelago keeps to what {settings} says" in (tmp_path / "new" / "report.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": "static,magic"}, "--policies: 'magic' is not one of archipelago,"),
        ({"initial": "tp4"}, "--initial: 'tp4' is not accepted"),
        ({"initial": "tp4=1,tp4=2"}, "tp4 is given twice"),
        ({"initial": "tp4=9"}, "--max-gpus is 8"),
        ({"seed": -1}, "--seed is -1"),
        ({"ttft": "soon"}, "--ttft: 'soon'"),
        ({"trace": "/nowhere.csv"}, "/nowhere.csv cannot be read"),
        ({"out": "/proc/report.html"}, "--out: /proc/report.html cannot be written"),
        ({"trace": None, "prometheus": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        ({"trace": None, "prometheus": "prometheus"}, "--prometheus: 'prometheus' is not where"),
        (
            {"trace": None, "prometheus": "http://127.0.0.1:9", "since": "a while"},
            "--since: 'a while' is not accepted; give a time such as 90min, 24h or 14d.",
        ),
        (
            {"trace": None, "prometheus": "http://127.0.0.1:9", "begins": "2026-11-23T08:00Z"},
            "--begins: only a --trace has no date",
        ),
        ({"trace": None, "prometheus": "http://127.0.0.1:9", "since": "15d"}, "from 15 minutes to 14 days"),
        (
            {"trace": None, "prometheus": "http://127.0.0.1:9", "token_file": "/nowhere"},
            "--token-file: /nowhere cannot be read (No such file or directory).",
        ),
        ({"trace": None, "prometheus": "http://127.0.0.1:9", "user": "me"}, "--user and --password-file: give both"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(whatif: Ran, options: dict[str, object], message: str) -> None:
    assert message in refused(whatif(**options))
