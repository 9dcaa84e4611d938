"""A layout as a Ray placement group. Pure.

Bundle i holds rank i, so vLLM is told the identity order; bundle 0 also holds the replica actor, which therefore sits
on rank 0's node. vLLM needs both: its broadcast queue takes the ranks on the actor's node for a prefix of all ranks
(vllm/v1/executor/ray_executor_v2.py), and without an explicit order it sorts bundles by random node ids. With data
parallelism the first bundle of each data-parallel rank also holds that rank's EngineCore.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from placement import Layout, Seat

REPLICA_CPUS = 1
ENGINE_CORE_CPUS = 1  # with dp = 1 EngineCore is a child of the replica actor


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundles:
    """Rank-ordered resources and, for each, the labels of the only node it may go to."""

    resources: tuple[Mapping[str, float], ...]
    selectors: tuple[Mapping[str, str], ...]


def bundles_for(layout: Layout, selectors: Mapping[str, Mapping[str, str]]) -> Bundles:
    """Translate a layout; ``selectors`` maps node names to Ray label selectors."""
    resources = tuple(_resources(seat, has_engine_cores=layout.shape.dp > 1) for seat in layout.seats)
    return Bundles(resources=resources, selectors=tuple(dict(selectors[seat.node]) for seat in layout.seats))


def _resources(seat: Seat, *, has_engine_cores: bool) -> Mapping[str, float]:
    is_first_of_rank = seat.pp_rank == 0 and seat.tp_rank == 0
    cpus = (REPLICA_CPUS if seat.rank == 0 else 0) + (ENGINE_CORE_CPUS if has_engine_cores and is_first_of_rank else 0)
    return {"GPU": 1, "CPU": cpus} if cpus else {"GPU": 1}
