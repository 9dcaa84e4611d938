"""The time of one engine step, part by part, for a whole batch of cases at once.

    step = overheads                    launches and small kernels; they do not shrink with tensor parallelism
         + dense matrices + experts     roofline of compute and weight reads, with the GPU's measured curve
         + KV reads                     of every running sequence, over the ranks that hold different heads
         + prefill attention
         + all-reduces                  two per layer, on the links that the group crosses
         + expert exchange              with data-parallel attention: gather all tokens, scatter the sums
         + pipeline sends               one per stage boundary

With `pp` stages a step is one micro-batch through all of them: `pp` micro-batches are in flight, each of 1/pp of the
requests, and a request gets its next token when its micro-batch comes round (equations: placement/README.md).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from placement.clusters.hardware import GpuKind
from placement.cost.arithmetic import expert_kernel, mlp_arithmetic
from placement.cost.constants import Key, Lookup
from placement.cost.work import Array, Matrix, Work, message_s
from placement.models.model import ModelSpec

_NEWER = ("b200_sxm", "b300_sxm", "gb200", "gb300", "rtx_pro_6000_server", "mi355x")  # Blackwell and its peers
STEADY = "steady"  # no benchmark's start, no benchmark's lengths
_US = 1e-6


class Step(NamedTuple):
    """Seconds of one step by what they are spent on; arrays with one entry per case."""

    overhead_s: Array
    matrices_s: Array
    experts_s: Array
    kv_reads_s: Array
    prefill_attention_s: Array
    all_reduce_s: Array
    exchange_s: Array
    send_s: Array

    @property
    def total_s(self) -> Array:
        total_s: Array = np.sum(self, axis=0)
        return total_s

    @property
    def communication_s(self) -> Array:
        return self.all_reduce_s + self.exchange_s + self.send_s


class Situation(NamedTuple):
    """What the constants of a case depend on; `client` is a load generator whose start and lengths are known."""

    gpu: str
    engine: str
    math: str
    expert_math: str
    client: str


def situation_of(model: ModelSpec, kind: GpuKind, engine: str, client: str) -> Situation:
    """The situation of `model` on one kind of GPU."""
    return Situation(
        gpu=kind.kind,
        engine=engine,
        math=mlp_arithmetic(model, kind),
        expert_math=expert_kernel(model, kind),
        client=client,
    )


def lookup(situations: Sequence[Situation]) -> Lookup:
    """Where the constants of each case are."""

    def each(*patterns: tuple[str, str]) -> list[tuple[Key, ...]]:
        return [
            tuple((name, pattern.format(**case._asdict(), age=_age(case.gpu))) for name, pattern in patterns)
            for case in situations
        ]

    speed = (("overhead_of_age", "{age}"), ("overhead_of_gpu", "{engine}|{gpu}"))
    return Lookup.of(
        {
            "launch": each(("gemm_launch", "{engine}")),
            "layer": each(("layer_overhead_us", "{engine}"), *speed),
            "moe_layer": each(
                ("moe_layer_overhead_us", "{engine}"), ("moe_overhead_of_math", "{engine}|{expert_math}"), *speed
            ),
            "latent_layer": each(("latent_layer_overhead_us", "{engine}"), *speed),
            "linear_layer": each(("linear_layer_overhead_us", "any"), *speed),
            "sparse_layer": each(("sparse_layer_overhead_us", "any"), *speed),
            "step": each(("step_overhead_us", "{engine}")),
            "sequence": each(("sequence_overhead_us", "{engine}")),
            "request": each(("request_overhead_us", "{engine}")),
            "gemm": each(("gemm_time", "{engine}|{math}")),
            "prefill": each(("prefill_time", "{engine}"), ("prefill_time_of_math", "{engine}|{math}")),
            "expert_bandwidth": each(("expert_bandwidth_share", "{expert_math}")),
            "expert_flops": each(("expert_flops_share", "{expert_math}"), ("expert_flops_of_age", "{age}")),
            "kv_bandwidth": each(("kv_bandwidth_share", "{engine}")),
            "attention_flops": each(("prefill_attention_share", "any")),
            "latent_flops": each(("decode_attention_share", "any")),
            "coverage": each(("expert_coverage", "any")),
            "imbalance": each(("expert_imbalance", "any")),
            "all_reduce": each(("all_reduce_time", "{engine}")),
            "exchange": each(("exchange_time", "{engine}")),
            "http": each(("http_overhead_ms", "{engine}|{client}")),
            "burst": each(("burst_share", "{engine}|{client}")),
            "queue": each(("queue_share", "{engine}")),
            "admission": each(("admission_ms", "{engine}|{client}")),
            "waited": each(("steps_waited", "{engine}")),
        }
    )


def step(work: Work, factors: Mapping[str, Array], decodes: Array, prefill_tokens: Array) -> Step:
    """One step in which `decodes` requests get a token and `prefill_tokens` tokens of prompts are read.

    Both count over all data-parallel ranks. The context of the requests is the one `work` was made for.
    """
    tokens = decodes + prefill_tokens
    rank_tokens = tokens / work.dp
    matrices = (
        _gemm(work.attention, rank_tokens, work, factors["gemm"])
        + _gemm(work.mlp, rank_tokens, work, factors["gemm"])
        + _head_s(work, decodes)
    )
    sent_bytes = rank_tokens * work.token_bytes
    return Step(
        overhead_s=overhead_s(work, factors) + decodes / work.dp * factors["sequence"] * _US,
        matrices_s=matrices,
        experts_s=_experts_s(work, factors, tokens),
        kv_reads_s=_kv_reads_s(work, factors, decodes / work.dp),
        prefill_attention_s=prefill_tokens
        / work.dp
        * work.prefill_attention_flops
        / (factors["attention_flops"] * work.bf16_flops_per_s),
        all_reduce_s=work.reductions * message_s(work.all_reduce_s, sent_bytes) * factors["all_reduce"],
        exchange_s=work.moe_layers * message_s(work.exchange_s, tokens * work.token_bytes) * factors["exchange"],
        send_s=message_s(work.send_s, sent_bytes),
    )


def reading(read: Step, factors: Mapping[str, Array]) -> Step:
    """A step that reads prompts: its kernels take longer than each alone, its messages do not, because links bind them.

    What prompts add to a step is the difference of two of these.
    """
    share = factors["prefill"]
    return Step(*(part * share for part in read))._replace(
        all_reduce_s=read.all_reduce_s, exchange_s=read.exchange_s, send_s=read.send_s
    )


def last_stage_s(work: Work, factors: Mapping[str, Array], decodes: Array) -> Array:
    """What only the last stage does, and the others wait for: the language-model head, and sampling."""
    time_s: Array = _head_s(work, decodes) + decodes / work.dp * factors["sequence"] * _US
    return time_s


def _head_s(work: Work, decodes: Array) -> Array:
    return np.asarray(_gemm(work.head, decodes / work.dp + 1, work, 1.0))


def overhead_s(work: Work, factors: Mapping[str, Array]) -> Array:
    """What every step takes however few tokens it has."""
    launches_s = work.attention.products * work.attention.launch_s + work.mlp.products * work.mlp.launch_s
    layers_us = (
        work.layers * factors["layer"]
        + work.moe_layers * factors["moe_layer"]
        + work.latent_layers * factors["latent_layer"]
        + work.linear_layers * factors["linear_layer"]
        + work.sparse_layers * factors["sparse_layer"]
    )
    time_s: Array = launches_s * factors["launch"] + (layers_us + factors["step"]) * _US
    return time_s


def experts_touched(experts: Array, experts_per_token: Array, tokens: Array) -> Array:
    """Distinct experts that `tokens` tokens choose, independently and evenly: E * (1 - (1 - k/E)^tokens)."""
    some = np.maximum(experts, 1)
    touched: Array = experts * (1 - (1 - experts_per_token / some) ** tokens)
    return touched


def _gemm(matrix: Matrix, tokens: Array, work: Work, factor: Array | float) -> Array:
    """Compute and weight reads meet in a rounded corner: (a^q + b^q)^(1/q), q from the GPU's measured curve."""
    compute_s = 2 * matrix.parameters * tokens / (matrix.flops_share * matrix.flops_per_s)
    read_s = matrix.parameters * matrix.bytes_per_weight / (matrix.bandwidth_share * work.memory_bytes_per_s)
    return factor * _corner(compute_s, read_s, matrix.sharpness)


def _experts_s(work: Work, factors: Mapping[str, Array], tokens: Array) -> Array:
    imbalance = np.where(work.ep > 1, factors["imbalance"], 1.0)
    touched = experts_touched(work.experts, work.experts_per_token, tokens) * factors["coverage"]
    compute_s = tokens * work.expert_flops_per_token * imbalance / (factors["expert_flops"] * work.expert_flops_per_s)
    read_s = touched * work.expert_bytes / (factors["expert_bandwidth"] * work.memory_bytes_per_s)
    return _corner(compute_s, read_s, 2.0)


def _kv_reads_s(work: Work, factors: Mapping[str, Array], rank_decodes: Array) -> Array:
    """Latent attention reads little and multiplies much, so that compute can bind there."""
    read_s = rank_decodes * work.kv_read_bytes / (factors["kv_bandwidth"] * work.memory_bytes_per_s)
    compute_s = rank_decodes * work.decode_attention_flops / (factors["latent_flops"] * work.bf16_flops_per_s)
    return _corner(read_s, compute_s, 2.0)


def _corner(left_s: Array, right_s: Array, sharpness: Array | float) -> Array:
    """The larger of two times, rounded where they are alike."""
    time_s: Array = (left_s**sharpness + right_s**sharpness) ** (1 / sharpness)
    return time_s


def _age(gpu: str) -> str:
    return "newer" if gpu in _NEWER else "older"
