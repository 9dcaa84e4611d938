"""How fleets, forecasts, events and audit entries look in a terminal."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.control.refusals import named
from deployments.control.values import Pools
from deployments.control.wire import (
    Accepted,
    AuditEntry,
    ClusterView,
    Event,
    EventPage,
    FleetView,
    RepartitionView,
    ReplicaView,
    SeatView,
)


def fleets_shown(cluster: ClusterView, fleets: Sequence[FleetView]) -> RenderableType:
    """The cluster in a line, and each fleet with its replicas."""
    hardware = (
        f"{_counted(len(cluster.islands), 'island')}, {_counted(len(cluster.nodes), 'node')}, "
        f"{_counted(cluster.gpus, 'GPU')}, {cluster.free_gpus} free"
    )
    leaving = [node.name for node in cluster.nodes if node.draining]
    if leaving:
        hardware += f"; draining: {', '.join(leaving)}"
    shown = [part for fleet in fleets for part in _fleet_shown(fleet)]
    return Group(plain(hardware), *(shown or [plain("no model is served")]))


def forecast_shown(model: str, pools: Pools, answer: Accepted) -> RenderableType:
    """What a change would do, step by step."""
    forecast = answer.forecast
    goal = f"{model} (version {answer.version}) to {named(pools)}"
    if forecast.infeasible is not None:
        return plain(f"{goal} does not fit: {forecast.infeasible}")
    if not answer.changed:
        return plain(f"{goal}: that is what is wanted already")
    rows = ((f"{step.at_s:.1f} s", step.step, step.what, step.reason) for step in forecast.timeline)
    cost = f"longest stall expected: {forecast.stall_s:.1f} s; GPUs needed: {forecast.gpus_needed}"
    if forecast.way is not None:
        cost = f"way: {forecast.way}; {cost}"
    return Group(plain(goal), _table(("at", "step", "what", "why"), rows), plain(cost))


def event_lines(page: EventPage) -> Iterator[Text]:
    """One line for each event, and one for those that are gone."""
    if page.gap is not None:
        yield plain(f"(events {page.gap.first} to {page.gap.last} are gone: they came faster than they were read)")
    yield from map(_event_line, page.events)


def audit_shown(entries: Iterable[AuditEntry]) -> RenderableType:
    """One row for each request, with what became of it and why."""
    rows = (
        (
            entry.at.isoformat(timespec="seconds"),
            entry.who,
            entry.model,
            entry.what,
            f"{named(entry.before)} -> {named(entry.after)}" if entry.before or entry.after else "-",
            entry.outcome,
            entry.reason if entry.refusal is None else f"{entry.reason} ({entry.refusal})",
        )
        for entry in entries
    )
    return _table(("at", "who", "model", "what", "pools", "outcome", "why"), rows)


def plain(text: str) -> Text:
    """Text as it is: no markup, and nothing that would move a terminal's cursor."""
    return Text("".join(character if character.isprintable() else " " for character in text))


def _event_line(event: Event) -> Text:
    subject = event.model if event.replica is None else f"{event.model} {event.replica}"
    return plain(f"{event.at.isoformat(timespec='seconds')}  {event.kind:<11}  {subject}: {event.text}")


def _fleet_shown(fleet: FleetView) -> Iterator[RenderableType]:
    yield plain("")
    yield plain(f"{fleet.model}  version {fleet.version}, {fleet.phase}")
    if fleet.next_ingress is not None:
        yield plain(f"its endpoint changes: {fleet.next_ingress} starts, and {fleet.ingress} has the clients")
    pools = f"pools: {named(fleet.desired_pools)}"
    if fleet.effective_pools != fleet.desired_pools:
        pools += f" wanted, {named(fleet.effective_pools)} possible: {fleet.shortfall or 'no reason was given'}"
    yield plain(pools)
    if fleet.repartition is not None:
        yield plain(_progress(fleet.repartition))
    if not fleet.replicas:
        yield plain("no replica runs")
        return
    columns = ("replica", "shape", "phase", "since", "where", "requests", "tokens/s", "health")
    yield _table(columns, map(_replica_row, fleet.replicas), numbers={"since", "requests", "tokens/s"})


def _progress(now: RepartitionView) -> str:
    return (
        f"repartition by {now.way}: step {now.step} of {now.steps}, {now.doing}; running for {now.running_s:.0f} s, "
        f"longest stall announced: {now.announced_stall_s:.1f} s"
    )


def _replica_row(replica: ReplicaView) -> tuple[str, ...]:
    return (
        replica.name,
        replica.shape,
        replica.phase,
        f"{replica.in_phase_s:.0f} s",
        _where(replica.seats),
        str(replica.unfinished_requests),
        "?" if replica.tokens_per_s is None else f"{replica.tokens_per_s:.0f}",
        replica.cause or "good",
    )


def _where(seats: Iterable[SeatView]) -> str:
    """ "island-0: 2 on node-a; island-1: 2 on node-b", in the order of the ranks."""
    on_nodes = Counter((seat.island, seat.node) for seat in seats)
    islands: dict[str, list[str]] = {}
    for (island, node), ranks in on_nodes.items():
        islands.setdefault(island, []).append(f"{ranks} on {node}")
    return "; ".join(f"{island}: {', '.join(nodes)}" for island, nodes in islands.items())


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = ()) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
