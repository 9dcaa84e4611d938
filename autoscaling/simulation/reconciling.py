"""How the simulated fleet gets from what runs to what is wanted: surge, rolling or swap, as the fleet controller does.

The way is chosen anew at every look (deployments/reconcile/ways.py), so that a target that changes on the way costs
only what it must. Pure: what to start, cancel and drain now; nothing at all means to wait.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoscaling.observation import Pools, gpus_of
from autoscaling.simulation.scenario import Scenario
from autoscaling.simulation.units import Unit
from placement import Infeasible, Layout, Shape, ShapeError, place
from placement.layout import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do now, and on which way."""

    way: str = "none"
    starts: tuple[Layout, ...] = ()
    cancels: tuple[Unit, ...] = ()
    drains: tuple[Unit, ...] = ()


def next_step(units: Sequence[Unit], desired: Pools, scenario: Scenario) -> Step:
    """The next step towards `desired`."""
    running, waiting = _in_phase(units, "serving"), _in_phase(units, "starting")
    surplus = _beyond(running, Counter(desired))
    cancels = _beyond(waiting, Counter(desired) - _shapes(running))
    if cancels:
        return Step(cancels=cancels)
    missing = _widest_first((Counter(desired) - _shapes(running) - _shapes(waiting)).elements())
    if not missing:
        return Step() if waiting else Step(drains=surplus)
    if (seats := seat(missing, units, scenario)) is not None:
        return Step(way="surge", starts=seats)
    going = len(running) + len(waiting) < len(units)
    if going and seat(missing, [*running, *waiting], scenario) is not None:
        return Step(way="surge")
    return _rolling(missing, units, surplus, scenario) or Step(way="swap", drains=() if scenario.floor else surplus)


def seat(shapes: Iterable[Shape], beside: Iterable[Unit], scenario: Scenario) -> tuple[Layout, ...] | None:
    """Seats for all `shapes` beside what holds GPUs; None where there are none, or not within `max_gpus`."""
    taken: frozenset[Place] = frozenset().union(*(unit.layout.places for unit in beside))
    seats: list[Layout] = []
    for shape in shapes:
        layout = place(shape, scenario.site.region_of(shape).cluster, taken)
        if isinstance(layout, Infeasible) or len(taken) + shape.gpus > scenario.max_gpus:
            return None
        taken |= layout.places
        seats.append(layout)
    return tuple(seats)


def refusal(desired: Pools, scenario: Scenario) -> str:
    """Why the fleet cannot have these pools; empty where it can."""
    if not desired:
        return "a fleet has at least one replica"
    if gpus_of(desired) > scenario.max_gpus:
        return f"{gpus_of(desired)} GPUs are more than the {scenario.max_gpus} that it may have"
    try:
        seats = seat(_widest_first(Counter(desired).elements()), (), scenario)
    except ShapeError as error:
        return str(error)
    return "" if seats is not None else "the islands have no room for all of its replicas"


def _rolling(
    missing: Sequence[Shape], units: Sequence[Unit], surplus: tuple[Unit, ...], scenario: Scenario
) -> Step | None:
    """Replica by replica: nothing happens while one starts or goes. None where too little would keep serving."""
    running = _in_phase(units, "serving")
    if len(running) < len(units):
        return Step(way="rolling") if running else None
    for shape in dict.fromkeys(missing):
        if seats := seat([shape], units, scenario):
            return Step(way="rolling", starts=seats)
    batches = [batch for shape in dict.fromkeys(missing) if (batch := _batch(shape, units, surplus, scenario))]
    if not batches:
        return None
    batch = min(batches, key=_gpus)
    left = _gpus(running) - _gpus(batch)
    return Step(way="rolling", drains=batch) if left > 0 and left >= scenario.floor * _gpus(running) else None


def _batch(shape: Shape, units: Sequence[Unit], surplus: tuple[Unit, ...], scenario: Scenario) -> tuple[Unit, ...]:
    """As few surplus units as possible whose seats make room for `shape`; empty where all are not enough."""

    def makes_room(batch: Sequence[Unit]) -> bool:
        return seat([shape], [unit for unit in units if unit not in batch], scenario) is not None

    batch = surplus
    if not makes_room(batch):
        return ()
    for unit in sorted(surplus, key=lambda unit: -unit.shape.gpus):
        fewer = tuple(other for other in batch if other is not unit)
        batch = fewer if makes_room(fewer) else batch
    return batch


def _beyond(units: Sequence[Unit], wanted: Counter[Shape]) -> tuple[Unit, ...]:
    """Units beyond the wanted number of their shape, the youngest."""
    left = Counter(wanted)
    beyond = []
    for unit in units:
        if left[unit.shape] > 0:
            left[unit.shape] -= 1
        else:
            beyond.append(unit)
    return tuple(beyond)


def _widest_first(shapes: Iterable[Shape]) -> list[Shape]:
    """Narrow groups find room between wide ones, not the other way round."""
    return sorted(shapes, key=lambda shape: (-shape.tp, -shape.gpus, str(shape)))


def _in_phase(units: Iterable[Unit], phase: str) -> list[Unit]:
    return [unit for unit in units if unit.phase == phase]


def _shapes(units: Iterable[Unit]) -> Counter[Shape]:
    return Counter(unit.shape for unit in units)


def _gpus(units: Iterable[Unit]) -> int:
    return sum(unit.shape.gpus for unit in units)
