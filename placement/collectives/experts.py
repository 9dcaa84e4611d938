"""Tokens to their experts and back: what one mixture-of-experts layer sends under expert parallelism.

Dispatch sends every token to the ranks of its experts, combine brings the results back and sums them. Mean errors
against public tables (tests/placement/test_collectives_experts.py): DeepEP low-latency on H200 and H800, 8 to 256
ranks, 5 %; the one-sided kernels of TensorRT-LLM on GB200 NVL72, 9 %; DeepEP high-throughput, 8 to 64 ranks, 5 %.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from placement.clusters.hardware import Link
from placement.collectives.group import NOTHING, CollectiveError, Engine, Factors, Group, Transfer
from placement.collectives.operations import all_gather, all_to_all, reduce_scatter

ExpertBackend = Literal[
    "allgather_reducescatter",  # vLLM's default: every rank gets all tokens
    "all_to_all",  # NCCL
    "deepep_low_latency",  # decode
    "deepep_high_throughput",  # prefill
    "one_sided",  # NVLink writes inside a rack-scale island (TensorRT-LLM, FlashInfer)
]

# What a few tokens wait, in seconds: inside a machine, and more over the network. DeepEP on H200 (SGLang 0.5.6),
# one-sided on GB200 (TensorRT-LLM blog 18).
_LOW_LATENCY_S = {"dispatch": (13.5e-6, 5e-6), "combine": (10e-6, 15e-6)}
_HIGH_THROUGHPUT_S = 30e-6  # not published; as a low-latency exchange over 8 machines
_ONE_SIDED_S = {"dispatch": 18e-6, "combine": 32e-6}
_RESULT_BYTES = 2.0  # of an element: sums are kept in 16 bits
_ONE_SIDED_KNEE = 1.5  # exponent of the crossover between waiting and sending
# Shares of a link's line rate: DeepEP low-latency 245 of 450 GB/s over NVLink, 46-48 of 50 GB/s over the network;
# high-throughput 153 of 200 GB/s over NVLink (H800); one-sided 620-680 of 900 GB/s.
_LOW_LATENCY_NVLINK, _NETWORK, _HIGH_THROUGHPUT_NVLINK, _ONE_SIDED_NVLINK = 0.54, 0.93, 0.77, 0.71


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What the model does with a token: `top_k` experts, and at most `machines_per_token` machines (0 = any number)."""

    hidden_size: int
    top_k: int
    machines_per_token: int = 0

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.top_k < 1 or self.machines_per_token < 0:
            raise CollectiveError(f"{self}: hidden_size and top_k must be at least 1, machines_per_token at least 0.")


def moe_dispatch(
    tokens: float,
    group: Group,
    routing: Routing,
    *,
    backend: ExpertBackend = "allgather_reducescatter",
    bytes_per_element: float = 2.0,
    engine: Engine = "vllm",
) -> Transfer:
    """Send `tokens` of each rank to their experts."""
    return _exchange("dispatch", tokens, group, routing, backend, bytes_per_element, engine)


def moe_combine(
    tokens: float,
    group: Group,
    routing: Routing,
    *,
    backend: ExpertBackend = "allgather_reducescatter",
    engine: Engine = "vllm",
) -> Transfer:
    """Bring the results of `tokens` of each rank back, which are 16-bit whatever the experts compute in."""
    return _exchange("combine", tokens, group, routing, backend, _RESULT_BYTES, engine)


def _exchange(
    step: Literal["dispatch", "combine"],
    tokens: float,
    group: Group,
    routing: Routing,
    backend: ExpertBackend,
    bytes_per_element: float,
    engine: Engine,
) -> Transfer:
    if tokens < 0 or bytes_per_element <= 0:
        raise CollectiveError(f"tokens {tokens} must be at least 0 and bytes_per_element {bytes_per_element} above 0.")
    if group.ranks == 1:
        return NOTHING
    token_bytes = tokens * routing.hidden_size * bytes_per_element
    if backend == "allgather_reducescatter":
        return (all_gather if step == "dispatch" else reduce_scatter)(token_bytes * group.ranks, group, engine)
    if backend == "all_to_all":
        return all_to_all(token_bytes * distinct(group.ranks, routing.top_k), group, engine)
    if backend == "deepep_low_latency":
        return _low_latency(step, token_bytes * routing.top_k, group)
    if backend == "deepep_high_throughput":
        return _high_throughput(token_bytes, group, routing)
    if backend == "one_sided":
        return _one_sided(step, token_bytes * routing.top_k, group)
    raise CollectiveError(f"backend is {backend!r}; it must be one of {', '.join(get_args(ExpertBackend))}.")


def distinct(places: int, top_k: int) -> float:
    """In how many of `places` equal places the `top_k` experts of a token are on average, all being equally likely."""
    return places * (1 - (1 - 1 / places) ** top_k)


def _low_latency(step: Literal["dispatch", "combine"], sent_bytes: float, group: Group) -> Transfer:
    """One copy of a token for each of its experts, directly to the expert's rank."""
    base_s, network_s = _LOW_LATENCY_S[step]
    island, inside = group.link("island")
    per_machine = -(-group.ranks // group.machines)
    time_s = sent_bytes * (per_machine - 1) / group.ranks / _rate(island, inside, _LOW_LATENCY_NVLINK)
    wait_s = base_s * inside.latency
    if group.span == "network":
        link, factors = group.link("network")
        remote_s = sent_bytes * (group.ranks - per_machine) / group.ranks / _rate(link, factors, _NETWORK)
        time_s = max(time_s, remote_s)
        wait_s += network_s * factors.latency * (math.log2(group.machines) if step == "dispatch" else 1.0)
    return Transfer(time_s=wait_s + time_s, algorithm="DeepEP low-latency", source="fitted on H200 and H800")


def _high_throughput(token_bytes: float, group: Group, routing: Routing) -> Transfer:
    """One copy for each machine over the network, then one for each rank over NVLink, the two overlapped."""
    island, inside = group.link("island")
    inside_bytes = token_bytes * distinct(group.ranks, routing.top_k)
    time_s = inside_bytes / _rate(island, inside, _HIGH_THROUGHPUT_NVLINK)
    if group.span == "network":
        link, factors = group.link("network")
        machines = distinct(group.machines, routing.top_k)
        if routing.machines_per_token:
            machines = min(machines, distinct(routing.machines_per_token, routing.top_k))
        remote_bytes = token_bytes * machines * (group.machines - 1) / group.machines
        time_s = max(time_s, remote_bytes / _rate(link, factors, _NETWORK))
    wait_s = _HIGH_THROUGHPUT_S * group.link(group.span)[1].latency
    return Transfer(time_s=wait_s + time_s, algorithm="DeepEP high-throughput", source="fitted on H800")


def _one_sided(step: Literal["dispatch", "combine"], sent_bytes: float, group: Group) -> Transfer:
    if group.span != "island" or not group.links.island.kind.startswith("nvlink"):
        raise CollectiveError(
            f"backend one_sided writes over NVLink inside one island; this group spans {group.islands} islands on "
            f"{group.links.island.kind}. Use all_to_all or a DeepEP backend."
        )
    island, factors = group.link("island")
    wait_s = _ONE_SIDED_S[step] * factors.latency
    send_s = sent_bytes / _rate(island, factors, _ONE_SIDED_NVLINK)
    time_s = float((wait_s**_ONE_SIDED_KNEE + send_s**_ONE_SIDED_KNEE) ** (1 / _ONE_SIDED_KNEE))
    return Transfer(time_s=time_s, algorithm="one-sided NVLink", source="fitted on GB200 NVL72")


def _rate(link: Link, factors: Factors, share: float) -> float:
    return link.bandwidth_bytes_per_s * factors.bandwidth * share
