import re

import pytest
from planner_builders import DEEPSEEK_V3, best, cluster, infeasible, model, requests, slo

from placement.clusters.cluster_reading import read_cluster
from placement.models.precision import with_precision
from placement.planning.plan import plan
from placement.shape import Shape


def test_a_model_too_large_names_the_memory_and_what_would_hold_it() -> None:
    found = plan(model(DEEPSEEK_V3), cluster("1x dgx-h100"), requests())
    answer = infeasible(found)
    assert re.search(r"does not fit: \S+ needs [\d.]+ GiB on the busiest GPU", answer.constraint)
    assert "GiB weights" in answer.constraint
    assert "KV cache of 1152 tokens" in answer.constraint
    nearest = re.search(r"on (\d+) GPUs", answer.nearest)
    assert nearest is not None
    assert int(nearest[1]) > 8
    assert found.closest is None
    assert all(not prediction.fits for prediction in found.predictions)


@pytest.mark.parametrize(
    ("limits", "missed", "kept"),
    [
        pytest.param({"tpot_ms": 1.0}, ["TPOT [0-9.]+ ms against 1 ms"], "TTFT", id="tpot"),
        pytest.param({"ttft_ms": 5.0}, ["TTFT [0-9]+ ms against 5 ms"], "TPOT", id="ttft"),
        pytest.param(
            {"ttft_ms": 5.0, "tpot_ms": 1.0},
            ["TTFT [0-9]+ ms against 5 ms", "TPOT [0-9.]+ ms against 1 ms"],
            "nothing",
            id="both",
        ),
    ],
)
def test_an_slo_that_nothing_meets_says_what_it_misses_by_how_much(
    limits: dict[str, float], missed: list[str], kept: str
) -> None:
    found = plan(model(), cluster(), requests(requests_per_s=1), slo(**limits))
    answer = infeasible(found)
    assert found.closest is not None
    assert str(found.closest.shape) in answer.constraint
    for words in missed:
        assert re.search(words, answer.constraint)
    assert kept not in answer.constraint + answer.nearest
    assert found.closest.gpus <= 32
    assert answer.nearest.startswith("an SLO with ")


def test_the_nearest_slo_would_be_met() -> None:
    found = plan(model(), cluster(), requests(), slo(tpot_ms=1))
    nearest = re.search(r"TPOT of ([0-9.]+) ms", infeasible(found).nearest)
    assert nearest is not None
    assert plan(model(), cluster(), requests(), slo(tpot_ms=float(nearest[1]) + 0.1)).best is not None


def test_too_few_gpus_says_what_rate_they_answer_and_how_many_more_it_takes() -> None:
    found = plan(model(), cluster("1x dgx-h100"), requests(requests_per_s=500), slo(tpot_ms=60))
    answer = infeasible(found)
    numbers = re.fullmatch(
        r"500 requests/s need (\d+) replicas of (\S+), (\d+) GPUs; the cluster has 8 of .+, room for (\d+)",
        answer.constraint,
    )
    assert numbers is not None
    replicas, shape, gpus, room = int(numbers[1]), Shape.parse(numbers[2]), int(numbers[3]), int(numbers[4])
    assert (replicas * shape.gpus, room * shape.gpus <= 8) == (gpus, True)
    nearest = re.fullmatch(r"([\d.]+) requests/s, or at least (\d+) more GPUs", answer.nearest)
    assert nearest is not None
    assert int(nearest[2]) == gpus - 8
    possible = plan(model(), cluster("1x dgx-h100"), requests(requests_per_s=0.8 * float(nearest[1])), slo(tpot_ms=60))
    assert possible.best is not None


def test_gpus_left_over_in_islands_do_not_count() -> None:
    """Six islands of 3 GPUs hold six pairs, although there are 18 GPUs."""
    islands = read_cluster({"gpu": "h100_sxm", "gpus_per_machine": 3, "machines": 6})
    clients = 50.0
    while (found := plan(model(), islands, requests(concurrency=clients), slo(tpot_ms=45))).best is not None:
        assert found.best.replicas * found.best.shape.pp <= 6
        clients *= 1.1
    answer = infeasible(found)
    numbers = re.search(
        r"need (\d+) replicas of (\S+), .* the cluster has 18 of .*, room for (\d+)$", answer.constraint
    )
    assert numbers is not None
    needed, shape, room = int(numbers[1]), Shape.parse(numbers[2]), int(numbers[3])
    assert room == 6 // shape.pp < needed
    more = re.search(r"at least (\d+) more GPUs", answer.nearest)
    assert more is not None
    assert int(more[1]) > 0


def test_weights_in_a_lighter_format_are_offered_when_they_would_do() -> None:
    """405B in 16 bits leaves two nodes no room for 2 requests/s; in 8 bits it is served with room to spare."""
    asked = (cluster("2x dgx-h100"), requests(requests_per_s=2), slo(None, 50))
    found = plan(model("meta-llama/Llama-3.1-405B"), *asked)
    assert found.infeasible is not None
    offered = re.match(r"weights in fp8, which (\d+) x (\S+) would serve, or ", found.infeasible.nearest)
    assert offered
    served = best(plan(with_precision(model("meta-llama/Llama-3.1-405B"), "fp8"), *asked))
    assert (str(served.replicas), str(served.shape)) == offered.groups()
