"""Where returns turn: checked against published measurements, and against what must hold whatever the constants are."""

import statistics
import time
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from planner_builders import model as known

from placement import misfits
from placement.clusters.machines import cluster_of
from placement.clusters.terrain import Region, regions
from placement.cost import constants
from placement.cost.prediction import Question, factors_for, predict, work_in
from placement.cost.serving import Demand, prompt_alone_s
from placement.cost.work import stack
from placement.scaling.curve import Curve, Point, Way
from placement.scaling.scale import Scaling, ScalingError, scale
from placement.workload import Lengths, Workload

LLAMA_70B = "meta-llama/Llama-3.1-70B-FP8"
LLAMA_405B = "meta-llama/Llama-3.1-405B-FP8"
LLAMA_8B = "meta-llama/Llama-3.1-8B"
GPT_OSS = "openai/gpt-oss-120b"
DEEPSEEK = "deepseek-ai/DeepSeek-V3"


@lru_cache(maxsize=64)
def asked(model: str, machine: str, count: int, tokens_in: int, tokens_out: int) -> tuple[Question, Region]:
    workload = Workload(input_tokens=Lengths(mean_tokens=tokens_in), output_tokens=Lengths(mean_tokens=tokens_out))
    region = regions(cluster_of(machine, count))[0]
    return Question(model=known(model), workload=workload, constants=constants.shipped()), region


@lru_cache(maxsize=64)
def study(
    model: str,
    machine: str,
    count: int = 1,
    *,
    running: float | None = 1,
    tokens_in: int = 1024,
    tokens_out: int = 1024,
    threshold: float = 0.5,
) -> Scaling:
    question, region = asked(model, machine, count, tokens_in, tokens_out)
    return scale(question, region, max_gpus=region.gpus, running=running, threshold=threshold)


def curve(scaling: Scaling, way: Way) -> Curve:
    return next(curve for curve in scaling.curves if curve.way == way)


def at(scaling: Scaling, way: Way, gpus: int) -> Point:
    return next(point for point in curve(scaling, way).points if point.gpus == gpus)


# Published measurements. Tolerances leave room for a refit of the constants, not for another conclusion.


def test_tensor_parallelism_over_infiniband_is_slower_than_inside_one_machine() -> None:
    """Llama-70B FP8 on H100: the step of 9.8 ms becomes 14.9 ms (all-reduces of 47 us, nccl#1244, instead of 5)."""
    scaling = study(LLAMA_70B, "dgx-h100", 2)
    assert at(scaling, "tp_across", 8).decode_ms == pytest.approx(9.8, rel=0.2)
    assert at(scaling, "tp_across", 16).decode_ms == pytest.approx(14.9, rel=0.2)
    [turn] = [turn for turn in curve(scaling, "tp_across").turns if turn.measure == "decode"]
    assert (turn.kind, turn.cause, turn.before.gpus, turn.after.gpus) == ("negative", "all_reduce", 8, 16)
    assert turn.sentence.startswith("TP 8 -> 16 crosses islands: all-reduces grow from 0.")
    assert "saved on dense weights" in turn.sentence


def test_each_doubling_inside_nvlink_gains_what_was_measured() -> None:
    """Medians over 768 pairs of InferenceMAX points: TPOT falls to 0.68, 0.74 and 0.85 of what it was."""
    machines = ("dgx-h100", "dgx-h200", "dgx-b200")
    studies = [
        study(model, machine, running=running)
        for model in (LLAMA_70B, GPT_OSS)
        for machine in machines
        for running in (4, 8, 16, 32, 64)
    ]
    ratios: dict[int, list[float]] = {2: [], 4: [], 8: []}
    for scaling in studies:
        full = [point for point in curve(scaling, "tp").fitting if point.running >= scaling.running]
        for before, after in pairwise(full):
            ratios[after.gpus].append(after.tpot_ms / before.tpot_ms)
    medians = {gpus: statistics.median(found) for gpus, found in ratios.items()}
    assert medians == pytest.approx({2: 0.68, 4: 0.74, 8: 0.85}, abs=0.07)


def test_wide_tensor_parallelism_on_pcie_brings_little_or_costs() -> None:
    """L40S over PCIe: 1209 -> 1334 tokens/s (+10 %) from TP4 to TP8, or less than before (TensorRT-LLM v0.17)."""
    scaling = study(LLAMA_70B, "l40s-pcie-8", running=None)
    assert at(scaling, "tp", 8).tokens_per_s < 1.25 * at(scaling, "tp", 4).tokens_per_s
    assert any(
        turn.measure == "tokens" and turn.cause in ("all_reduce", "prompts") for turn in curve(scaling, "tp").turns
    )


def test_pipelines_beat_tensor_parallelism_across_slow_links() -> None:
    """Falcon-180B over two machines: TP8 has about twice the TBT of TP4PP2 (Sarathi-Serve, arXiv:2403.02310)."""
    scaling = study(LLAMA_70B, "hgx-a100-8", 2, running=32)
    across, stages = at(scaling, "tp_across", 16), at(scaling, "tp_pp", 16)
    assert 1.2 < across.decode_ms / stages.decode_ms < 3
    assert stages.tokens_per_s > 1.2 * across.tokens_per_s
    on_pcie = study(LLAMA_70B, "l40s-pcie-8", running=None)
    assert at(on_pcie, "pp", 8).tokens_per_s > at(on_pcie, "tp", 8).tokens_per_s


def test_four_machines_of_tensor_parallelism_bring_nothing_for_405b() -> None:
    """Meta, 128K context: 46.3 ms a token on TP8, 47.3 ms on TP32 (arXiv:2411.01783)."""
    scaling = study(LLAMA_405B, "dgx-h100", 4, tokens_in=131072, tokens_out=64)
    narrow, wide = at(scaling, "tp_across", 8), at(scaling, "tp_across", 32)
    assert wide.decode_ms / narrow.decode_ms == pytest.approx(47.3 / 46.3, rel=0.15)


def test_one_request_is_answered_far_faster_by_tensor_parallelism_than_by_a_pipeline() -> None:
    """Llama-405B FP8 on HGX H200: TP8 is 5.6 times faster than PP8 at the least latency (NVIDIA)."""
    scaling = study(LLAMA_405B, "dgx-h200", tokens_in=1000, tokens_out=1000)
    assert at(scaling, "pp", 8).decode_ms / at(scaling, "tp", 8).decode_ms == pytest.approx(5.6, rel=0.25)


def test_a_rack_of_one_island_still_gains_where_machines_of_eight_lose() -> None:
    """Kimi-K3 on GB300 NVL72: TP8 -> TP16 gives 6 % more tokens/s for one request (vLLM, 2026-07-27)."""
    rack, machines = study(LLAMA_70B, "gb200-nvl72"), study(LLAMA_70B, "dgx-b200", 2)
    assert 1.0 < at(rack, "tp", 8).decode_ms / at(rack, "tp", 16).decode_ms < 1.2
    assert at(machines, "tp_across", 8).decode_ms < at(machines, "tp_across", 16).decode_ms


# What must hold whatever the constants.


@pytest.mark.parametrize("model", [LLAMA_8B, GPT_OSS])
@pytest.mark.parametrize("machine", ["dgx-h100", "rtx-pro-6000-8"])
def test_a_pipeline_never_shortens_the_way_of_one_request(model: str, machine: str) -> None:
    scaling = study(model, machine, 2)
    points = curve(scaling, "pp").fitting
    for before, after in pairwise(points):
        assert after.decode_ms >= before.decode_ms * 0.999
        assert after.prefill_ms >= before.prefill_ms * 0.999
    inside = curve(scaling, "tp_pp").fitting
    assert inside[-1].decode_ms >= inside[0].decode_ms


def test_parts_add_up_to_the_times_they_are_parts_of() -> None:
    for scaling in (study(LLAMA_70B, "dgx-h100", 2, running=32), study(DEEPSEEK, "dgx-h200", 4, running=None)):
        for point in (point for each in scaling.curves for point in each.fitting):
            assert sum(point.parts_ms.values()) == pytest.approx(point.decode_ms)
            assert sum(point.prefill_parts_ms.values()) == pytest.approx(point.prefill_ms)
            assert sum(point.best_parts_ms.values()) == pytest.approx(1e3 * point.best_running / point.tokens_per_s)
            for measure in ("decode", "prefill", "tokens", "prompt_tokens"):
                assert sum(point.costs_ms(measure).values()) == pytest.approx(1e3 / point.speed(measure))
            assert 0 <= point.communication_share < 1
            assert point.tpot_ms >= point.decode_ms


def test_a_point_says_what_the_planner_says_of_the_same_shape() -> None:
    question, region = asked(LLAMA_70B, "dgx-h100", 2, 1024, 1024)
    point = at(study(LLAMA_70B, "dgx-h100", 2), "tp_pp", 16)
    [prediction] = predict(question, [(point.shape, region)])
    assert point.tokens_per_s == pytest.approx(prediction.output_tokens_per_s)
    assert point.decode_ms == pytest.approx(1e3 * sum(prediction.loads[0].parts_s.values()))
    demand = Demand(np.array([1024.0]), np.array([1024.0]), np.array([1.0]))
    work = stack([work_in(question, point.shape, region)])
    alone_s = prompt_alone_s(work, factors_for(question, [region]), demand)
    assert point.prefill_ms == pytest.approx(1e3 * float(alone_s[0]))


def test_each_data_parallel_rank_reads_a_prompt_of_its_own() -> None:
    point = at(study(DEEPSEEK, "dgx-h200", 4, running=None), "dp_ep", 16)
    assert point.prompt_tokens_per_s == pytest.approx(16 * 1024 / (point.prefill_ms / 1e3))


def test_a_sweep_over_a_thousand_gpus_takes_less_than_a_second() -> None:
    question, region = asked(DEEPSEEK, "dgx-h200", 128, 1024, 1024)
    started = time.process_time()
    scaling = scale(question, region, max_gpus=1024)
    assert time.process_time() - started < 1
    assert {each.way for each in scaling.curves} == {"tp", "tp_across", "pp", "tp_pp", "tp_ep", "dp_ep"}
    assert max(point.gpus for point in curve(scaling, "dp_ep").points) == 1024


def test_what_the_model_forbids_or_memory_refuses_is_a_point_with_its_reason() -> None:
    scaling = study(DEEPSEEK, "dgx-h200", 4, running=None)
    assert at(scaling, "tp", 1).reason.startswith("does not fit: weights 6")
    wide = study(LLAMA_8B, "dgx-h100", 16)
    assert "64 " in at(wide, "pp", 64).reason
    assert at(wide, "tp_across", 64).reason == "tp64 does not divide the 32 attention heads of meta-llama/Llama-3.1-8B."
    for found in (wide, scaling):
        for point in (point for each in found.curves for point in each.points):
            assert point.fits == (not point.reason)
            assert not (point.fits and misfits(point.shape, found.question.model))
            assert point.fits or (point.decode_ms == float("inf") and point.tokens_per_s == 0)


def test_sizes_follow_the_islands() -> None:
    rack = study(DEEPSEEK, "gb200-nvl72", 2, running=None)
    assert [point.gpus for point in curve(rack, "tp_across").points] == [64, 128]
    assert {18, 36, 72} <= {point.gpus for point in curve(study(LLAMA_70B, "gb200-nvl72"), "pp").points}
    assert [str(point.shape) for point in curve(study(LLAMA_70B, "dgx-h100", 2), "tp_pp").points] == ["tp8", "tp8pp2"]
    assert not any(each.way == "tp_across" for each in study(LLAMA_70B, "dgx-h100").curves)


def test_one_gpu_is_a_point_though_nothing_grows() -> None:
    question, region = asked(LLAMA_8B, "dgx-h100", 1, 1024, 1024)
    (only,) = scale(question, region, max_gpus=1).curves
    assert [(str(point.shape), point.fits) for point in only.points] == [("tp1", True)]


def test_steps_of_fewer_requests_are_not_compared() -> None:
    """TP2 on L40S holds some 16 requests of 32: its short step must not make TP4 look like a loss."""
    scaling = study(LLAMA_70B, "l40s-pcie-8", running=32)
    assert at(scaling, "tp", 2).running < 32
    assert all(turn.before.running == 32 for turn in scaling.turns if turn.measure == "decode")


def test_running_is_the_workloads_concurrency_unless_it_is_given() -> None:
    question, region = asked(LLAMA_8B, "dgx-h100", 1, 1024, 1024)
    lengths = Lengths(mean_tokens=100)
    workload = Workload(input_tokens=lengths, output_tokens=lengths, concurrency=7)
    asked_seven = Question(model=question.model, workload=workload, constants=question.constants)
    assert scale(asked_seven, region, max_gpus=8).running == 7
    assert scale(asked_seven, region, max_gpus=8, running=3).running == 3
    assert scale(question, region, max_gpus=8).running == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_gpus": 9}, "max_gpus is 9; it must be from 1 to 8"),
        ({"max_gpus": 0}, "max_gpus is 0"),
        ({"max_gpus": 8, "running": 0}, "running is 0; it must be at least 1"),
        ({"max_gpus": 8, "running": float("nan")}, "running is nan"),
        ({"max_gpus": 8, "threshold": 1.0}, r"threshold is 1\.0; it must be above 0 and below 1"),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused(arguments: dict[str, float], message: str) -> None:
    question, region = asked(LLAMA_8B, "dgx-h100", 1, 1024, 1024)
    with pytest.raises(ScalingError, match=message):
        scale(question, region, **arguments)  # type: ignore[arg-type]
