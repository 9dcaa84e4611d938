"""`archipelago simulate` as people use it: what it writes, and how it says what is wrong."""

import json
from pathlib import Path

import pytest
from cli_builders import Ran, even_trace, flags, no_network, ran, refused

from placement.calibration.links import as_document
from placement.collectives import Calibration, Factors

__all__ = ["no_network", "ran"]  # fixtures
MODEL = "meta-llama/Llama-3.1-70B"


@pytest.fixture
def simulated(ran: Ran, tmp_path: Path) -> Ran:
    """Runs `simulate` with what is needed, replaced or added to by the arguments."""
    given = {"cluster": "1x dgx-h100", "model": MODEL, "policy": "static", "ttft": "2s"}
    given["trace"] = str(even_trace(tmp_path, 200))
    return lambda *argv, **options: ran("simulate", *flags(given | options), *argv)


def test_links_that_were_calibrated_are_those_of_the_simulation(simulated: Ran, tmp_path: Path) -> None:
    slow = Calibration(island=Factors(latency=50.0, bandwidth=1.0))
    (tmp_path / "links.json").write_text(json.dumps(as_document(slow)))
    shipped, own = (
        json.loads(simulated("--json", initial="tp4=1", calibration=folder)[1]) for folder in (None, tmp_path)
    )
    assert own["tpot_s"]["p50"] > 1.5 * shipped["tpot_s"]["p50"]


def test_the_result_is_written_and_told(simulated: Ran, tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    code, output, progress = simulated(out=out, initial="tp4=2", seed=3, tpot="50ms")
    assert code == 0
    assert "static: 90 %" in progress
    assert "100.00% of all arrivals" in output
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["arrivals"] == result["good"] == 199
    assert result["gpu_hours"] == pytest.approx(8 * 199 / 3600)
    assert (result["policy"], result["trace"], result["seed"]) == ("static", "day", 3)
    assert result["series"]["gpus"] == {"tp4": pytest.approx([8] * 4)}


def test_json_is_printed_alone(simulated: Ran) -> None:
    code, output, _ = simulated("--json", initial="tp4=1")
    assert code == 0
    assert json.loads(output)["attainment"] == 1.0


def test_the_slo_can_be_given_in_one(simulated: Ran) -> None:
    _, output, _ = simulated("--json", initial="tp4=1", slo="ttft=2s,tpot=1ms,percentile=p90")
    assert json.loads(output)["attainment"] == 0.0, "no step takes a millisecond"


def test_truth_slows_the_replicas_down(simulated: Ran) -> None:
    tpot_s = [json.loads(simulated("--json", initial="tp4=1", truth=factor)[1])["tpot_s"]["p50"] for factor in (1, 2)]
    assert tpot_s[1] == pytest.approx(2 * tpot_s[0], rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "clever"}, "--policy is 'clever'; it must be one of "),
        ({"trace": "/nowhere.csv"}, "/nowhere.csv cannot be read as CSV"),
        ({"initial": "tp4"}, "--initial: 'tp4' is not accepted; give a shape and how many replicas: tp4=2"),
        ({"initial": "tp4=0"}, "--initial: 'tp4=0' is not accepted"),
        ({"initial": "tp4=1,tp4=1"}, "tp4 is given twice"),
        ({"initial": "tp3=1"}, "--initial is 'tp3=1'; the shapes considered are "),
        ({"initial": "tp4=3"}, "--max-gpus is 8; the cluster has 8 GPUs and the initial pools (3 x tp4) take 12"),
        ({"max_gpus": 64}, "--max-gpus is 64; the cluster has 8"),
        ({"slo": "speed=2"}, "--slo: 'speed=2' is not accepted"),
        ({"ttft": "fast"}, "--ttft"),
        ({"seed": -1}, "--seed is -1"),
        ({"truth": 0}, "--truth of tp"),
        ({"start_time": "soon"}, "--start-time"),
        ({"model": "nobody/knows"}, "model is 'nobody/knows'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(simulated: Ran, options: dict[str, object], message: str) -> None:
    assert message in refused(simulated(**options))
