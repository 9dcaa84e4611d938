"""Wanted against found: does every rank run where its layout puts it? Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from placement import Layout


class PlacementMismatchError(Exception):
    """The replica does not sit where its layout says; the message shows wanted against found for each rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where one worker really is, told by itself."""

    dp_rank: int
    pp_rank: int
    tp_rank: int
    ray_node_id: str
    ray_actor_id: str
    gpu_ids: Sequence[str]
    pid: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where one replica really is: its actor, the bundles of its placement group, its workers in rank order."""

    replica_node: str
    bundle_nodes: tuple[str, ...]
    workers: tuple[Whereabouts, ...]


def verify(layout: Layout, found: Found, node_names: Mapping[str, str]) -> None:
    """Compare a replica with its layout.

    Args:
        layout: what was wanted.
        found: what Ray and the workers say.
        node_names: from Ray node ids to the names used in layouts; a node that is in none keeps its id.

    Raises:
        PlacementMismatchError: with one line per difference.
    """
    problems = list(_rank_problems(layout, found, node_names))
    wanted_home = layout.seats[0].node
    found_home = node_names.get(found.replica_node, found.replica_node)
    if found_home != wanted_home:
        problems.append(f"replica actor: wanted {wanted_home} (rank 0's node), found {found_home}")
    if problems:
        raise PlacementMismatchError(f"{layout.shape} is not placed as planned:\n  " + "\n  ".join(problems))


def _rank_problems(layout: Layout, found: Found, node_names: Mapping[str, str]) -> Iterable[str]:
    counts = {"workers": len(found.workers), "bundles": len(found.bundle_nodes)}
    wrong = {what: count for what, count in counts.items() if count != len(layout.seats)}
    if wrong:
        yield from (f"{what}: wanted {len(layout.seats)}, found {count}" for what, count in wrong.items())
        return
    for seat, worker, bundle_node in zip(layout.seats, found.workers, found.bundle_nodes, strict=True):
        wanted_ranks = (seat.dp_rank, seat.pp_rank, seat.tp_rank)
        found_ranks = (worker.dp_rank, worker.pp_rank, worker.tp_rank)
        who = f"rank {seat.rank} (stage {seat.pp_rank}, tp {seat.tp_rank})"
        if found_ranks != wanted_ranks:
            yield f"{who}: wanted (dp, pp, tp) = {wanted_ranks}, found {found_ranks}"
        worker_node = node_names.get(worker.ray_node_id, worker.ray_node_id)
        if worker_node != seat.node:
            yield f"{who}: wanted {seat.node} in {seat.island}, found {worker_node}"
        if node_names.get(bundle_node, bundle_node) != seat.node:
            yield f"{who}: wanted its bundle on {seat.node}, found {node_names.get(bundle_node, bundle_node)}"
    yield from _split_groups(layout, found.workers, node_names)


def _split_groups(layout: Layout, workers: Sequence[Whereabouts], node_names: Mapping[str, str]) -> Iterable[str]:
    islands = {seat.node: seat.island for seat in layout.seats}
    groups: dict[tuple[int, int], set[str]] = {}
    for worker in workers:
        node = node_names.get(worker.ray_node_id, worker.ray_node_id)
        groups.setdefault((worker.dp_rank, worker.pp_rank), set()).add(islands.get(node, node))
    for (dp_rank, pp_rank), found_islands in sorted(groups.items()):
        if len(found_islands) > 1:
            group = f"tensor-parallel group of stage {pp_rank}" + (f", data-parallel rank {dp_rank}" if dp_rank else "")
            yield f"{group}: leaves its island, found on {', '.join(sorted(found_islands))}"
