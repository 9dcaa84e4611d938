"""One replica of the simulated fleet: its seats, its engine, and where it is in its life."""

from dataclasses import dataclass
from typing import Literal

from autoscaling.simulation.engines import Engine
from placement import Layout, Shape
from placement.cost.simulation_replica import Replica, Requests

Phase = Literal["starting", "serving", "draining", "stopping"]


@dataclass(slots=True, kw_only=True)
class Unit:
    """`until_s`: when its phase ends, at the latest for a drain. It holds its GPUs in all of them."""

    number: int
    layout: Layout
    phase: Phase
    until_s: float
    engine: Engine
    replica: Replica

    @property
    def shape(self) -> Shape:
        return self.layout.shape

    def use(self, engine: Engine, at_s: float) -> None:
        """Go on with another table and room, from the end of the step that runs at `at_s`."""
        if engine is self.engine:
            return
        self.replica.run(at_s)
        self.replica.free_tokens += (engine.room_tokens - self.engine.room_tokens) * engine.table.ranks
        self.replica.room_tokens = engine.room_tokens
        self.replica.table = engine.table
        self.engine = engine


def new_unit(
    number: int, layout: Layout, phase: Phase, until_s: float, engine: Engine, requests: Requests, patience_s: float
) -> Unit:
    """A unit without requests."""
    replica = Replica(
        table=engine.table,
        requests=requests,
        room_tokens=engine.room_tokens,
        free_tokens=engine.room_tokens * engine.table.ranks,
        free_places=engine.max_running * engine.table.ranks,
        following=len(requests.prompts),
        patience_s=patience_s,
    )
    return Unit(number=number, layout=layout, phase=phase, until_s=until_s, engine=engine, replica=replica)
