"""A past out of Prometheus: from tables, and from a real one that holds six hours."""

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_builders import prometheus
from whatif_builders import NOW_S, SAMPLES_S, SLO, TP4, answering, samples, tp4_at

from autoscaling.observation import pools_of
from autoscaling.observing.prometheus import Prometheus
from autoscaling.observing.queries import Ask, Failure
from autoscaling.whatif.commands import add_commands
from autoscaling.whatif.from_prometheus import read_past
from autoscaling.whatif.past import Past, PastError
from autoscaling.whatif.reconstruction import fidelity, reconstructed

HOUR_S = 3600.0


def known(ask: Ask, *, since_s: float = 2 * HOUR_S, model: str = "m") -> Past:
    return read_past(ask, model=model, slo=SLO, now_s=NOW_S, since_s=since_s, scrape_interval_s=30.0)


def test_everything_is_read() -> None:
    found = known(answering())
    assert (found.origin, found.steps, found.start_s) == ("archipelago", 120, NOW_S - 2 * HOUR_S)
    assert found.answers is not None
    assert found.answers.attainment == pytest.approx(0.98)
    assert found.prefix_hit_rate == pytest.approx(0.25)
    assert found.inputs.most_tokens == 1000
    assert 0.3 < found.inputs.spread < 1
    assert found.ran is not None
    assert found.ran.targets(60.0) == ((0.0, pools_of({TP4: 2})),)
    assert sum(row.sum() for row in found.ran.gpus(120).values()) / 60 == pytest.approx(16)  # GPU-hours
    assert found.notes == ()


def test_a_prometheus_that_scrapes_seldom_says_nothing_of_bursts() -> None:
    found = read_past(answering(), model="m", slo=SLO, now_s=NOW_S, since_s=900.0, scrape_interval_s=600.0)
    assert found.dispersion == 1.0


def test_refused_and_failed_requests_did_not_keep_the_slo() -> None:
    found = known(answering(values={"refused": {"": 0.5}, "failed": {"": 0.1}})).answers
    assert found is not None
    assert found.attainment == pytest.approx((1.96 - 0.1) / 2.5)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"held": {}, "desired": {}}, "What ran is unknown"),
        ({"tpot_buckets": {}}, "How many kept the SLO is unknown"),
    ],
)
def test_what_is_not_known_is_said(values: dict[str, dict[str, float]], note: str) -> None:
    [found] = known(answering(values=values)).notes
    assert found.startswith(note)


def test_gaps_are_told_and_many_are_refused() -> None:
    found = known(answering(gaps=((NOW_S - 1800, NOW_S - 1200),)))
    assert found.notes == ("8.3% of the minutes are missing, at most 10 in a row: demand is drawn straight across.",)
    assert found.unknown.sum() == 10
    assert np.isfinite(reconstructed(found, 0).arrivals_s).all()
    with pytest.raises(PastError, match=r"25% of the history is missing.*at most 20%"):
        known(answering(gaps=((NOW_S - 3600, NOW_S - 1800),)))


def test_a_shorter_history_than_asked_for_is_told() -> None:
    found = known(answering(gaps=((0, NOW_S - HOUR_S),)))
    assert found.notes == ("Prometheus knows the last 1.0 h only, of 2.0 h asked for.",)
    assert found.steps == 60


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (answering(failure=Failure(kind="unreachable", why="http://p cannot be reached (gone).")), "gone"),
        (answering(values={"arrivals": {}}, models=("llama", "qwen")), "'m'.*it has llama, qwen"),
        (answering(values={"arrivals": {}}), "it has no model at all"),
        (answering(values={"arrivals": {"": 0.0}}), "had no request in the last 2 h"),
        (answering(values={"input_sum": {}}), "100% of the history is missing"),
    ],
)
def test_what_cannot_be_replayed_is_said(ask: Ask, message: str) -> None:
    with pytest.raises(PastError, match=message):
        known(ask)


@pytest.mark.parametrize("since_s", [60.0, 15 * 86_400.0])
def test_so_short_or_long_a_past_is_refused(since_s: float) -> None:
    with pytest.raises(PastError, match="from 15 minutes to 14 days"):
        known(answering(), since_s=since_s)


@pytest.fixture(scope="module")
def six_hours(prometheus_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs the binary `promtool` (apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("six-hours")
    text = folder / "metrics.txt"
    text.write_text("\n".join((*samples(), *samples("foreign", is_ours=False), "# EOF\n")))
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(text), str(folder / "data")]
    subprocess.run([*command, "--max-block-duration=512h"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    with prometheus(prometheus_binary, folder) as (url, _):
        yield url


def test_a_real_prometheus_tells_the_past_that_was_written(six_hours: str) -> None:
    with Prometheus(six_hours) as ask:
        found = known(ask, since_s=SAMPLES_S)
    assert found.history.requests_per_s[10] == pytest.approx(0.5, rel=0.01)
    assert found.history.requests_per_s[-10] == pytest.approx(1.0, rel=0.01)
    assert found.answers is not None
    assert found.answers.attainment == pytest.approx(0.98, abs=0.002)
    assert found.prefix_hit_rate == pytest.approx(0.25, abs=0.001)
    assert (found.inputs.most_tokens, found.outputs.most_tokens) == (1000, 200)
    assert found.ran is not None
    gpu_hours = sum(row.sum() for row in found.ran.gpus(found.steps).values()) / 60
    assert gpu_hours == pytest.approx(3 * 4 * tp4_at(0) + 3 * 4 * tp4_at(NOW_S), rel=0.01)
    assert [pools for _, pools in found.ran.targets(60.0)] == [pools_of({TP4: 1}), pools_of({TP4: 2})]
    trace = reconstructed(found, 0)
    error = fidelity(found, trace)
    assert abs(error.worst_input_tokens) < 0.01
    assert abs(error.worst_output_tokens) < 0.01
    assert trace.input_tokens.mean() == pytest.approx(400, rel=0.02)


def test_a_vllm_of_others_has_demand_but_no_fleet(six_hours: str) -> None:
    with Prometheus(six_hours) as ask:
        found = known(ask, since_s=SAMPLES_S, model="foreign")
    assert (found.origin, found.ran) == ("vllm", None)
    assert found.history.requests_per_s[-10] == pytest.approx(1.0, rel=0.01)
    assert [note.split()[0:2] for note in found.notes] == [["These", "are"], ["What", "ran"]]


def test_the_models_that_are_there_are_named(six_hours: str) -> None:
    with Prometheus(six_hours) as ask, pytest.raises(PastError, match="it has foreign, m"):
        known(ask, model="nobody")


@pytest.mark.slow
def test_a_report_of_six_hours(six_hours: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(), lambda model: None, lambda: NOW_S)
    out = tmp_path / "new" / "report.html"
    words = (
        f"whatif --prometheus {six_hours} --since 6h --model m --source meta-llama/Llama-3.1-70B --shapes tp4 --json"
    )
    options = ["--cluster=2x dgx-h100", "--ttft=2s", "--tpot=50ms", "--policies=no-repartition", f"--out={out}"]
    arguments = parser.parse_args([*words.split(), *options, "--scrape-interval=30s"])
    assert arguments.run(arguments) == 0
    output, progress = capsys.readouterr()
    assert re.search(r"you ran 3[56]\.\d GPU-hours at 98\.0 % attainment", output)
    assert "no-repartition: 90 %" in progress
    assert "Your own fleet, simulated" in output
    assert out.with_suffix(".json").exists()
    assert "What you ran" in out.read_text(encoding="utf-8")
