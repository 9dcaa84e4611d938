"""A layout as a Ray placement group. Pure.

Bundle i holds rank i, so vLLM is told the identity order; bundle 0 also holds the replica actor, which therefore sits
on rank 0's node. vLLM needs both: its broadcast queue takes the ranks on the actor's node for a prefix of all ranks
(vllm/v1/executor/ray_executor_v2.py), and without an explicit order it sorts bundles by random node ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from placement import Layout

REPLICA_CPUS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundles:
    """Rank-ordered resources and, for each, the labels of the only node it may go to."""

    resources: tuple[Mapping[str, float], ...]
    selectors: tuple[Mapping[str, str], ...]


def bundles_for(layout: Layout, selectors: Mapping[str, Mapping[str, str]]) -> Bundles:
    """Translate a layout; ``selectors`` maps node names to Ray label selectors."""
    resources = tuple({"GPU": 1, "CPU": REPLICA_CPUS} if seat.rank == 0 else {"GPU": 1} for seat in layout.seats)
    return Bundles(resources=resources, selectors=tuple(dict(selectors[seat.node]) for seat in layout.seats))
