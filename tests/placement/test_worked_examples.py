"""Published worked examples, each with its source and tolerance: sizes, rooflines and limits that follow by hand.

Analytic examples count no overheads and let every byte and FLOP run at the datasheet's rate; `ideal` does the same, so
they test the arithmetic alone.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from collective_builders import machines_of
from planner_builders import model

from placement.clusters.hardware import GpuKind, Link, Links
from placement.collectives import Group, Routing, moe_combine, moe_dispatch
from placement.cost.constants import Constants, read, shipped, write
from placement.cost.step import Situation, Step, lookup, step
from placement.cost.work import Groups, Traffic, stack, work_of
from placement.models.memory import kv_bytes_per_gpu
from placement.models.model import ModelSpec
from placement.shape import Shape

GIB = 2**30
ICI = Link(kind="nvlink4", bandwidth_bytes_per_s=45e9, latency_s=1e-6, source="TPU ICI; the kind is only a stand-in")


def tpu(name: str, memory_gib: int, gb_per_s: float, tera_bf16: float, tera_int8: float) -> GpuKind:
    return GpuKind(
        kind=name,
        title=name,
        memory_bytes=memory_gib * GIB,
        memory_bandwidth_bytes_per_s=gb_per_s * 1e9,
        flops={"bf16": tera_bf16 * 1e12, "int8": tera_int8 * 1e12},
        l2_bytes=0,
        source="cloud.google.com/tpu/docs",
    )


# The book's round figures: 8.2e11 bytes/s and 1.97e14 FLOP/s.
V5E = tpu("tpu_v5e", 16, 820, 197, 394)
V4 = tpu("tpu_v4", 32, 1200, 275, 275)


@cache
def ideal() -> Constants:
    """All efficiencies 1, all overheads and messages as good as free."""
    document = write(shipped())
    for name, constant in document["constants"].items():
        costs = constant["unit"].startswith(("us", "ms")) or name in ("all_reduce_time", "exchange_time")
        constant["default"], constant["values"] = 1e-9 if costs else 1.0, {}
    document["gemm"]["curves"] = {f"vllm|{math}": [0, 1, 1, 4] for math in ("bf16", "fp8", "int8", "fp4")}
    return read(document)


def ideal_step(
    spec: ModelSpec, chip: GpuKind, tp: int, *, context: int, decodes: int = 0, prefill: int = 0, kv_bytes: float = 2
) -> Step:
    """One step on `tp` chips; with `prefill`, prompts of `context` tokens are read."""
    group = Group(ranks=tp, links=Links(island=ICI, network=ICI))
    traffic = Traffic(input_tokens=context, output_tokens=0, kv_bytes_per_element=kv_bytes)
    work = work_of(spec, Shape(tp=tp), chip, Groups(tensor=group, experts=group), traffic, constants=ideal())
    found = lookup([Situation(gpu=chip.kind, engine="vllm", math="bf16", expert_math="bf16", client="steady")])
    factors = found.factors(found.logarithms(ideal()))
    return step(stack([work]), factors, np.array([float(decodes)]), np.array([float(prefill)]))


@pytest.mark.parametrize(
    ("sequences", "step_ms"), [(1, 4.98), (8, 12.13), (16, 20.30), (32, 36.65), (64, 69.33), (240, 249.0)]
)
def test_scaling_book_llama_2_13b_on_8_v5e(sequences: int, step_ms: float) -> None:
    """jax-ml/scaling-book, applied-inference: (KV caches of 8192 tokens + weights) / (8 * 8.2e11).

    1 %: the book rounds the model to 13e9 parameters and counts the input embedding, which no step reads whole.
    """
    found = ideal_step(model("meta-llama/Llama-2-13b-hf"), V5E, 8, context=8192, decodes=sequences)
    assert found.total_s[0] * 1e3 == pytest.approx(step_ms, rel=0.01)


def test_scaling_book_grouped_heads_read_a_fifth() -> None:
    """The same with 8 KV heads: 53.0 ms for 240 sequences, 4.17 for one, so 0.2043 for each. 1 %: the book's rounding.

    The whole step is not compared: the book keeps the 13e9 parameters, though fewer KV heads have fewer weights.
    """
    grouped = model("meta-llama/Llama-2-13b-hf", num_key_value_heads=8)
    found = ideal_step(grouped, V5E, 8, context=8192, decodes=240)
    assert found.kv_reads_s[0] * 1e3 == pytest.approx(53.0 - 4.17 + 0.2043, rel=0.01)


def test_scaling_book_llama_3_70b_int8_on_v5e() -> None:
    """applied-inference: 32 sequences of 8192 tokens, int8 throughout, 17 ms on 4x2 chips. 3 %: the book rounds.

    On 4x4 the book halves everything. Our weights halve too, but 8 KV heads on 16 ranks are read twice, as in vLLM;
    the book shards the cache over sequences there.
    """
    spec = model("meta-llama/Meta-Llama-3-70B", "int8")
    small = ideal_step(spec, V5E, 8, context=8192, decodes=32, kv_bytes=1)
    large = ideal_step(spec, V5E, 16, context=8192, decodes=32, kv_bytes=1)
    assert small.total_s[0] == pytest.approx(17e-3, rel=0.03)
    assert large.matrices_s[0] == pytest.approx(small.matrices_s[0] / 2, rel=0.03)
    assert large.kv_reads_s[0] == pytest.approx(small.kv_reads_s[0], rel=0.01)


def test_scaling_book_prefill_of_llama_3_70b() -> None:
    """applied-inference: 8192 tokens on 16 chips at 40 % of peak take 0.91 s, without attention. 3 %: 70e9 is round."""
    found = ideal_step(model("meta-llama/Meta-Llama-3-70B"), V5E, 16, context=8192, prefill=8192)
    assert found.matrices_s[0] / 0.4 == pytest.approx(0.91, rel=0.03)


@pytest.mark.parametrize(
    ("sequences", "heads", "head_sharded", "batch_sharded"), [(128, 1320, 660, 43_000), (512, 330, 165, 10_700)]
)
def test_pope_longest_context_of_palm(sequences: int, heads: int, head_sharded: int, batch_sharded: int) -> None:
    """Pope et al. 2022 (arXiv:2211.05102), table 1: the context for which KV caches take 30 % of 64 TPU v4.

    Multi-head (48 heads of 128), multi-query with copies on every chip, multi-query sharded over the batch; 2 %: the
    paper rounds. This is what decides that the cache of one KV head is copied, not divided, under tensor parallelism.
    """
    room = 0.3 * V4.memory_bytes / sequences
    palm, multi_head = model("google/palm-540b"), model("google/palm-540b", num_key_value_heads=48, head_dim=128)
    assert room / kv_bytes_per_gpu(multi_head, 64, 1, 2) == pytest.approx(heads, rel=0.02)
    assert room / kv_bytes_per_gpu(palm, 64, 1, 2) == pytest.approx(head_sharded, rel=0.02)
    assert 64 * room / kv_bytes_per_gpu(palm, 1, 1, 2) == pytest.approx(batch_sharded, rel=0.02)


@pytest.mark.parametrize(
    ("tokens", "measured_s", "mfu"),
    [(2048, 0.29, 0.43), (512 * 2048, 85.2, 0.76), (64, 1.82 / 64, 0.14), (512, 6.0 / 64, 0.33)],
    ids=["prefill-1", "prefill-512", "decode-64", "decode-512"],
)
def test_pope_model_flops_utilisation(tokens: int, measured_s: float, mfu: float) -> None:
    """Pope et al. 2022, tables 2 and 3: 2 FLOPs for each parameter, 540.35e9, and token. A point: its rounding."""
    spec = model("google/palm-540b")
    assert spec.parameters == pytest.approx(540.35e9, rel=1e-3)
    flops = 2 * spec.parameters * tokens
    assert flops / (64 * V4.flops["bf16"] * measured_s) == pytest.approx(mfu, abs=0.01)


def test_pope_decode_is_bounded_by_memory_and_prefill_by_arithmetic() -> None:
    """29 ms a token for 64 sequences in int8, and 85.2 s for 512 prompts of 2048 tokens in bf16, on 64 TPU v4.

    Bounds, from below and within a factor: the paper's 2D layouts and its overlapped communication are not modelled.
    """
    weights_s = model("google/palm-540b", "int8").weight_bytes / (64 * V4.memory_bandwidth_bytes_per_s)
    decode = ideal_step(model("google/palm-540b", "int8"), V4, 64, context=2048, decodes=64)
    prefill = ideal_step(model("google/palm-540b"), V4, 64, context=2048, prefill=512 * 2048)
    assert 7.0e-3 < weights_s < 7.3e-3
    assert weights_s < decode.total_s[0] < 29e-3
    assert 64 < prefill.total_s[0] < 85.2


def test_deepseek_bound_of_one_dispatch_and_combine() -> None:
    """arXiv:2505.09343, 2.3.2: (1 + 2 bytes) * 32 tokens * 9 experts * 7000 / 50 GB/s = 120.96 us over 400 Gbit/s.

    What is above the wait for an empty message must be that at our share of the line rate (93 %), less the messages
    that stay inside a machine (8 of 256 ranks). 1 %.
    """
    links = Links(
        island=replace(ICI, bandwidth_bytes_per_s=200e9),
        network=replace(ICI, kind="infiniband", bandwidth_bytes_per_s=50e9),
    )
    group, routing = machines_of(256, 32, links), Routing(hidden_size=7000, top_k=9)

    def both_s(tokens: float) -> float:
        dispatch = moe_dispatch(tokens, group, routing, backend="deepep_low_latency", bytes_per_element=1)
        return dispatch.time_s + moe_combine(tokens, group, routing, backend="deepep_low_latency").time_s

    assert both_s(32) - both_s(0) == pytest.approx(120.96e-6 * (1 - 8 / 256) / 0.93, rel=0.01)
    assert both_s(32) > 120.96e-6
