"""When a change that would pay is not made: it must have been the answer for long enough, and not too soon again."""

from collections.abc import Sequence
from dataclasses import replace

from autoscaling.capacity.ceiling import margin
from autoscaling.capacity.times import Times
from autoscaling.observation import Fleet, Observation, Pools, spelled
from autoscaling.policy.bounds import Bounds, gives_up
from autoscaling.policy.memory import Direction, Memory, Pressure
from autoscaling.policy.outlook import Outlook
from autoscaling.policy.pricing import Offer
from autoscaling.policy.ranking import Choice, Refusal
from autoscaling.policy.rules import Rules
from autoscaling.schedule import Due

# A spike shorter than this patience is past its peak by the time that patience ends, because rates are means over a
# window: so demand that falls is waited for, once as long again.
_NEAR_PEAK = 0.9
_LONGEST_WAIT = 2.0
# What the margin of the model allows for may be noise, and misses few: it is waited for longer.
_MILD_WAIT = 3.0
_MOST_LOAD = 1e3  # "cannot serve it at all", in memory that becomes JSON


def refusal(
    offer: Offer, fleet_pools: Pools, memory: Memory, limits: Bounds, coming: Sequence[Due], at_s: float
) -> Refusal | None:
    """What forbids an offer whatever it is worth. `coming` is what the schedule wants soon."""
    bar = memory.bar(fleet_pools, offer.pools) if offer.kind == "repartition" else None
    if bar is not None:
        return Refusal(
            cause="barred",
            sentence=f"was tried and did worse than what it replaced; not again for {duration(bar.until_s - at_s)}",
        )
    if not limits.allow_change(fleet_pools, offer.pools):
        return Refusal(
            cause="limit", sentence=f"changes more than the {limits.max_change_gpus} GPUs that may change at once"
        )
    wanted = next((one for one in coming if gives_up(one.bounds, fleet_pools, offer.pools)), None)
    if wanted is not None:
        return Refusal(cause="schedule", sentence=f"is less than the schedule wants {wanted.shown(at_s)}")
    return None


def is_stuck(fleet: Fleet, memory: Memory, rules: Rules) -> bool:
    """Whether the change that is going on has lacked something for so long that it will not get it."""
    return fleet.changing and memory.stuck_s >= rules.repartition_after_s and fleet.shortfall is not None


def pressed(memory: Memory, choice: Choice, passed_s: float) -> Memory:
    """With what speaks for a change now added to what has spoken for it so far."""
    if choice.is_hold:
        return replace(memory, pressure=None)
    direction: Direction = "less" if choice.winner.gpus < choice.hold.gpus else "more"
    before = memory.pressure or Pressure(direction=direction)
    return replace(
        memory, pressure=before.next(direction, min(choice.hold.load, _MOST_LOAD), passed_s if memory.pressure else 0.0)
    )


def held_back(
    choice: Choice,
    memory: Memory,
    observation: Observation,
    outlook: Outlook,
    rules: Rules,
    times: Times,
    *,
    may_stay: bool,
    has_misses_left: bool,
) -> Refusal | None:
    """Why the winner must wait; None where it need not. `has_misses_left`: of those that the SLO allows."""
    at_s, fleet = observation.at_s, observation.fleet
    if fleet.changing and not is_stuck(fleet, memory, rules):
        return Refusal(cause="changing", sentence=_changing(fleet, memory, at_s))
    if rules.frozen:
        return Refusal(cause="frozen", sentence="Changes are frozen.")
    if not rules.is_in_window(at_s):
        return Refusal(cause="window", sentence="Changes are made only in the maintenance windows.")
    if choice.is_hold or not may_stay:
        return None
    if has_misses_left and choice.winner.kind == "replicas" and _is_mild(choice, rules):
        return Refusal(
            cause="not-yet",
            sentence=f"Demand is {choice.hold.load:.2f}x what the fleet is sure to serve; fewer requests than may have "
            "missed the SLO lately, so that is borne with as long as more are left.",
        )
    return _cooling(choice, memory, rules, times, at_s) or _too_soon(
        choice, memory, _patience_s(choice, observation, outlook, rules)
    )


def _changing(fleet: Fleet, memory: Memory, at_s: float) -> str:
    since = f" for {duration(at_s - memory.change.at_s)}" if memory.change and memory.change.took_s is None else ""
    short = f"; it lacks something: {fleet.shortfall}" if fleet.shortfall else ""
    return f"The fleet has been on the way to {spelled(fleet.desired)}{since}{short}."


def _cooling(choice: Choice, memory: Memory, rules: Rules, times: Times, at_s: float) -> Refusal | None:
    """A cooldown counts from the end of the last change. Replicas may be added to replicas that were added."""
    change = memory.change
    if change is None or change.took_s is None:
        return None
    adds = choice.winner.kind == "replicas" and not choice.hold.keeps
    if adds and change.only_added:
        return None
    start_s = max((times.start_s(shape) for shape in (*change.after, *choice.winner.pools)), default=0.0)
    left_s = change.at_s + change.took_s + rules.cooldown_after_s(change.took_s, start_s) - at_s
    if left_s <= 0:
        return None
    return Refusal(
        cause="cooldown",
        sentence=f"The last change, from {spelled(change.before)} to {spelled(change.after)}, took "
        f"{duration(change.took_s)}; the next one may come in {duration(left_s)}.",
    )


def _patience_s(choice: Choice, observation: Observation, outlook: Outlook, rules: Rules) -> float:
    """How long the winner must have been the answer. For what only saves GPUs the known past is as good as waiting."""
    if choice.hold.keeps:
        unknown_s = outlook.patience_s - outlook.recent_s
        if choice.winner.kind == "repartition":
            unknown_s = max(unknown_s, rules.lookback_s - outlook.lasting_s)
        return max(unknown_s, observation.window_s)
    after_s = rules.repartition_after_s if choice.winner.kind == "repartition" else rules.up_after_s
    return after_s * (_MILD_WAIT if _is_mild(choice, rules) else 1.0)


def _is_mild(choice: Choice, rules: Rules) -> bool:
    """Whether the fleet is asked for too much, but no more than it serves if all of its margin turns out not needed."""
    return not choice.hold.keeps and choice.hold.load * margin(rules.slo.percentile) < 1


def _too_soon(choice: Choice, memory: Memory, after_s: float) -> Refusal | None:
    pressure = memory.pressure
    if pressure is None:
        return None
    what = "Fewer GPUs have" if pressure.direction == "less" else "A change has"
    if pressure.lasted_s < after_s:
        return Refusal(
            cause="not-yet",
            sentence=f"{what} been the answer for {duration(pressure.lasted_s)}; that must last {duration(after_s)}.",
        )
    falling = not choice.hold.keeps and pressure.load < _NEAR_PEAK * pressure.peak
    if falling and pressure.lasted_s < _LONGEST_WAIT * after_s:
        return Refusal(
            cause="not-yet",
            sentence=f"Demand is {pressure.load:.2f}x what the fleet serves and falls; it was {pressure.peak:.2f}x.",
        )
    return None


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
