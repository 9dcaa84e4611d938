"""The decision of one tick: from what is seen and remembered to what should run, with every option that lost. Pure.

blind? hold --> demand to plan for --> options --> each priced --> the best --> changing, frozen, too soon? hold
"""

from dataclasses import replace

from autoscaling.capacity.performance import Performance
from autoscaling.capacity.seating import Islands, islands_of
from autoscaling.capacity.times import Times
from autoscaling.capacity.transitions import Stage, Transition, transition
from autoscaling.decision import Cause, Decision
from autoscaling.observation import Blind, Observation, Pools, gpus_of, pools_of, spelled
from autoscaling.policy.bounds import Bounds, bounds_ahead
from autoscaling.policy.budget import counted, ease
from autoscaling.policy.doubts import doubting
from autoscaling.policy.estimates import Estimates
from autoscaling.policy.imbalance import imbalance
from autoscaling.policy.memory import Memory
from autoscaling.policy.options import Candidate, options
from autoscaling.policy.outlook import Outlook, outlook
from autoscaling.policy.pricing import priced
from autoscaling.policy.ranking import Choice, Refusal, choose
from autoscaling.policy.reasons import Reasons
from autoscaling.policy.rules import Rules, candidates
from autoscaling.policy.stability import held_back, is_stuck, pressed, refusal


def decide(
    observation: Observation | Blind, memory: Memory, rules: Rules, performance: Performance, times: Times
) -> tuple[Decision, Memory]:
    """What should run, and what to remember until the next tick.

    Args:
        observation: of one model.
        memory: what the last call gave back; `Memory()` at first.
        rules: what may be done.
        performance: what shapes can do. It must know those of `rules.shapes` and those that run.
        times: how long changes take.
    """
    if isinstance(observation, Blind):
        return unseen(observation, memory)
    passed_s = memory.passed_s(observation.at_s, observation.window_s)
    memory = counted(memory.seeing(observation, rules.lookback_s), observation, rules, passed_s)
    lopsided = imbalance(observation)
    model = Estimates(performance, rules.slo)
    memory = doubting(memory, observation, model, rules, passed_s, is_lopsided=lopsided is not None)

    current = _current(observation, memory, rules)
    shapes = candidates(rules, tuple(current))
    start_s = max((times.start_s(shape) for shape in shapes), default=0.0)
    queued = 0.0 if lopsided else observation.waiting
    regrets = memory.regrets_of(gpus_of(current))
    plan = outlook(observation, rules, start_s=start_s, queued=queued, regrets=regrets)
    room = ease(memory, observation.demand, rules)
    # Eased only for giving up replicas: were rises measured so too, help for them would come too late.
    estimates, eased = (Estimates(performance, rules.slo, memory.doubts, by) for by in (1.0, room))
    limits, coming = bounds_ahead(
        rules, observation.fleet.gpus, current, observation.at_s, step_s=start_s + observation.window_s
    )
    may_stay = limits.allow(current)
    islands = islands_of(observation.fleet.cluster)

    hold, *others = (
        priced(candidate, way, plan, eased if candidate.only_gives_up(current) else estimates, rules.payback_s)
        for candidate in options(current, shapes, plan, estimates, eased, limits)
        if (way := _way(candidate, current, limits, rules, times, islands))
    )
    choice = choose(
        hold,
        others,
        rules,
        may_stay=may_stay,
        refusal=lambda offer: refusal(offer, current, memory, limits, coming, observation.at_s),
    )
    memory = pressed(memory, choice, passed_s)
    held = held_back(choice, memory, observation, plan, rules, times, may_stay=may_stay, has_misses_left=room > 1)
    reasons = Reasons(observation, lopsided, plan, estimates, rules, limits)
    return _decision(observation, choice, held, plan, reasons, is_scheduled=bool(limits.due)), memory


def unseen(blind: Blind, memory: Memory) -> tuple[Decision, Memory]:
    """The decision where nothing is known: hold, and let no time pass for what speaks for a change."""
    target = memory.desired or {}
    decision = Decision(at_s=blind.at_s, kind="hold", cause="blind", target=target, reason=f"{blind.kind}: {blind.why}")
    return decision, replace(memory, seen_s=None)


def _current(observation: Observation, memory: Memory, rules: Rules) -> Pools:
    """The fleet that options start from: the target, unless it has turned out to be out of reach."""
    fleet = observation.fleet
    return pools_of(fleet.serving if is_stuck(fleet, memory, rules) else fleet.desired)


def _way(
    candidate: Candidate, current: Pools, limits: Bounds, rules: Rules, times: Times, islands: Islands
) -> Transition | None:
    """How the fleet would get there; None where it cannot."""
    if candidate.kind == "hold":
        return Transition(way="none", stages=(Stage(from_s=0.0, serving=current, gpus=gpus_of(current)),))
    gpus = max(limits.max_gpus, gpus_of(current))
    return transition(current, candidate.pools, gpus=gpus, times=times, floor=rules.floor, islands=islands)


def _decision(
    observation: Observation,
    choice: Choice,
    held: Refusal | None,
    plan: Outlook,
    reasons: Reasons,
    *,
    is_scheduled: bool,
) -> Decision:
    """The winner, or a hold that says what would have been done."""
    winner = choice.winner
    stays = held is not None or choice.is_hold
    reason = reasons.of_choice(choice)
    if held is not None:
        reason = held.sentence if choice.is_hold else f"{held.sentence} Else {spelled(winner.pools)}: {reason}"
    return Decision(
        at_s=observation.at_s,
        kind="hold" if stays else winner.kind,
        cause=held.cause if held else _cause(choice, is_scheduled=is_scheduled),
        target=pools_of(observation.fleet.desired) if stays else winner.pools,
        reason=reason + reasons.of_schedule(choice) + reasons.of_imbalance(),
        expected=plan.expected,
        options=reasons.of_options(choice),
    )


def _cause(choice: Choice, *, is_scheduled: bool) -> Cause:
    """Why the winner won; for a hold, what kept the offer away that would have saved most."""
    if choice.is_least_bad:
        return "least-bad"
    if is_scheduled and choice.hold.keeps and not choice.may_stay:
        return "schedule"
    loser = choice.nearest_saving
    if not choice.is_hold or loser is None:
        return "cheapest"
    if loser.refusal is not None:
        return loser.refusal.cause
    return "not-yet" if loser.loss == "forgets" else "not-worth-it"
