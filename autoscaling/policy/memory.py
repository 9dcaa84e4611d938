"""What the policy carries from one tick to the next, and through a restart: plain values that become JSON.

Whether a decision was carried out is not remembered but seen: a change is a new target in the fleet's own state. So the
memory is the same for what was only advised, what a person did by hand, and what the autoscaler did itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from autoscaling.observation import Observation, Pools, gpus_of, pools_of
from placement import Shape

VERSION = 2
Direction = Literal["more", "less"]


class MemoryVersionError(ValueError):
    """Not a memory that this version reads. The message says what was found and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The last change of target. `took_s` is None until the fleet is there."""

    at_s: float
    before: Pools = field(hash=False)
    after: Pools = field(hash=False)
    took_s: float | None = None

    @property
    def only_added(self) -> bool:
        """Whether replicas were added and nothing else."""
        return all(self.after.get(shape, 0) >= replicas for shape, replicas in self.before.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """What speaks for more GPUs (or as many in other shapes), or for fewer: for how long, and how strongly.

    `load` is demand over what the fleet serves within the SLO.
    """

    direction: Direction
    lasted_s: float = 0.0
    load: float = 0.0
    peak: float = 0.0

    def next(self, direction: Direction, load: float, passed_s: float) -> "Pressure":
        """The pressure after `passed_s` more, which start anew when the direction turns."""
        if direction != self.direction:
            return Pressure(direction=direction, load=load, peak=load)
        return Pressure(direction=direction, lasted_s=self.lasted_s + passed_s, load=load, peak=max(self.peak, load))


@dataclass(frozen=True, slots=True, kw_only=True)
class Barred:
    """A repartition that turned out worse than what it replaced, and is not tried before `until_s`."""

    before: tuple[Shape, ...]
    after: tuple[Shape, ...]
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of one model.

    Attributes:
        seen_s: when the model was last seen; None after a blind tick, so that blind time counts for nothing.
        desired: the fleet's target when it was last seen.
        change: the last change of target.
        pressure: what speaks for a change, and since when.
        regrets: how often in a row GPUs were given up and soon needed again. regretted_gpus: of the largest fleet of
            which that was so.
        stuck_s: for how long the change that is going on has lacked something.
        missed_s: for how long the fleet has done far worse than the model of it says.
        arrived, late: requests of the last minutes, and those that missed the SLO; older ones fade.
        asked, missed: the same two over a lookback, whatever the fleet was doing.
        owed: requests beyond what the fleet can answer, as the model has it; below 0 after time with room to spare.
        doubts: what the model's rates are multiplied with, of shapes that were seen doing worse.
        barred: repartitions that failed.
    """

    seen_s: float | None = None
    desired: Pools | None = field(default=None, hash=False)
    change: Change | None = None
    pressure: Pressure | None = None
    regrets: int = 0
    regretted_gpus: int = 0
    stuck_s: float = 0.0
    missed_s: float = 0.0
    arrived: float = 0.0
    late: float = 0.0
    asked: float = 0.0
    missed: float = 0.0
    owed: float = 0.0
    doubts: Mapping[Shape, float] = field(default_factory=dict, hash=False)
    barred: tuple[Barred, ...] = ()

    def passed_s(self, at_s: float, most_s: float) -> float:
        """Time that was watched since the last tick: none after a blind one, and a pause counts for no more than
        `most_s`."""
        return 0.0 if self.seen_s is None else min(max(0.0, at_s - self.seen_s), most_s)

    def seeing(self, observation: Observation, soon_s: float) -> "Memory":
        """With what the fleet says of itself: a new target is a change, one that is reached has taken its time.

        GPUs that were given up for less than `soon_s` before more were needed are a regret.
        """
        fleet, at_s = observation.fleet, observation.at_s
        change, regrets, regretted_gpus = self.change, self.regrets, self.regretted_gpus
        if change is not None and change.at_s > at_s:  # a clock that was set back must not lengthen a cooldown
            change = replace(change, at_s=at_s)
        if self.desired is not None and fleet.desired != self.desired:
            if change is not None and gpus_of(change.after) < gpus_of(change.before):
                soon = at_s - change.at_s < soon_s
                if soon and gpus_of(fleet.desired) > gpus_of(self.desired):
                    regrets, regretted_gpus = regrets + 1, max(regretted_gpus, gpus_of(change.before))
                elif not soon:
                    regrets = regretted_gpus = 0
            change = Change(at_s=at_s, before=self.desired, after=fleet.desired)
        if change is not None and change.took_s is None and not fleet.changing:
            change = replace(change, took_s=at_s - change.at_s)
        short = fleet.changing and fleet.shortfall is not None
        stuck_s = self.stuck_s + self.passed_s(at_s, observation.window_s) if short else 0.0
        barred = tuple(one for one in self.barred if one.until_s > at_s)
        return replace(
            self,
            seen_s=at_s,
            desired=pools_of(fleet.desired),
            change=change,
            regrets=regrets,
            regretted_gpus=regretted_gpus,
            stuck_s=stuck_s,
            barred=barred,
        )

    def regrets_of(self, gpus: int) -> int:
        """Those that tell of a fleet of so many GPUs: what a larger one serves is not what was asked for so soon."""
        return self.regrets if gpus <= self.regretted_gpus else 0

    def barring(self, before: Pools, after: Pools, until_s: float) -> "Memory":
        """With one more repartition that is not to be tried before `until_s`."""
        one = Barred(before=tuple(pools_of(before)), after=tuple(pools_of(after)), until_s=until_s)
        return replace(self, barred=(*self.barred, one))

    def bar(self, before: Pools, after: Pools) -> Barred | None:
        """What bars the way from one fleet to another: shapes that were brought in from the same ones, and failed."""
        brought = set(after) - set(before)
        return next(
            (one for one in self.barred if set(one.before) == set(before) and brought & (set(one.after) - set(before))),
            None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the version of their form."""
        change, pressure = self.change, self.pressure
        return {
            "version": VERSION,
            "seen_s": self.seen_s,
            "desired": None if self.desired is None else _plain(self.desired),
            "change": None
            if change is None
            else {
                "at_s": change.at_s,
                "before": _plain(change.before),
                "after": _plain(change.after),
                "took_s": change.took_s,
            },
            "pressure": None
            if pressure is None
            else {
                "direction": pressure.direction,
                "lasted_s": pressure.lasted_s,
                "load": pressure.load,
                "peak": pressure.peak,
            },
            "regrets": self.regrets,
            "regretted_gpus": self.regretted_gpus,
            "stuck_s": self.stuck_s,
            "missed_s": self.missed_s,
            "arrived": self.arrived,
            "late": self.late,
            "asked": self.asked,
            "missed": self.missed,
            "owed": self.owed,
            "doubts": {str(shape): trust for shape, trust in self.doubts.items()},
            "barred": [
                {"before": list(map(str, one.before)), "after": list(map(str, one.after)), "until_s": one.until_s}
                for one in self.barred
            ],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Memory":
        """What `to_json` wrote. Raises `MemoryVersionError` for anything else."""
        version = document.get("version")
        if version != VERSION:
            raise MemoryVersionError(
                f"version of the policy's memory is {version!r}; this autoscaler reads {VERSION}. Without its memory "
                "it starts afresh: move the file away."
            )
        try:
            return _read(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MemoryVersionError(
                f"the policy's memory is damaged ({type(error).__name__}: {error}); it must be what an autoscaler of "
                f"version {VERSION} wrote. Without its memory it starts afresh: move the file away."
            ) from error


def _read(document: Mapping[str, Any]) -> Memory:
    desired, change, pressure = document["desired"], document["change"], document["pressure"]
    return Memory(
        seen_s=document["seen_s"],
        desired=None if desired is None else _pools(desired),
        change=change and Change(**{**change, "before": _pools(change["before"]), "after": _pools(change["after"])}),
        pressure=pressure and Pressure(**pressure),
        regrets=int(document["regrets"]),
        regretted_gpus=int(document["regretted_gpus"]),
        stuck_s=float(document["stuck_s"]),
        missed_s=float(document["missed_s"]),
        arrived=float(document["arrived"]),
        late=float(document["late"]),
        asked=float(document["asked"]),
        missed=float(document["missed"]),
        owed=float(document["owed"]),
        doubts={Shape.parse(name): float(trust) for name, trust in document["doubts"].items()},
        barred=tuple(
            Barred(before=_shapes(one["before"]), after=_shapes(one["after"]), until_s=float(one["until_s"]))
            for one in document["barred"]
        ),
    )


def _plain(pools: Pools) -> dict[str, int]:
    return {str(shape): replicas for shape, replicas in pools.items()}


def _pools(document: Mapping[str, int]) -> Pools:
    return pools_of({Shape.parse(name): int(replicas) for name, replicas in document.items()})


def _shapes(names: list[str]) -> tuple[Shape, ...]:
    return tuple(map(Shape.parse, names))
