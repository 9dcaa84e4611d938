"""Starts that failed: whose fault it was, whether to roll back, and when and where to try again.

The replicas of one attempt fail one after the other; they count once, because only replicas that were named after the
last count can be of a new attempt. Nothing tells a broken GPU from a broken configuration, and Ray counts both GPUs
alike: each new attempt goes to GPUs where none has failed, while there are some.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deployments.reconcile.states import Actual, Desired, Limits, Phase, Record, ReplicaState, count_shapes, name_pools
from deployments.reconcile.steps import CountFailure, RollBack
from deployments.reconcile.stock import places_of
from placement.layout import Infeasible, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the starts of one model.

    `failed` maps names of replicas to causes; `stuck` says why nothing is started any more; `may_start` is also False
    while the next attempt waits. `failed_on` are the GPUs to try last.
    """

    failed: Mapping[str, str]
    failed_on: frozenset[Place]
    steps: tuple[RollBack | CountFailure, ...] = ()
    may_start: bool = True
    stuck: Infeasible | None = None

    @property
    def rolls_back(self) -> bool:
        """Whether other pools are wanted from now on."""
        return any(isinstance(step, RollBack) for step in self.steps)


def judge(
    desired: Desired, record: Record, replicas: Sequence[ReplicaState], actual: Actual, limits: Limits
) -> Verdict:
    """Judge the model's `replicas`, those whose nodes are lost left out: their end is nobody's fault."""
    failed = {one.name: cause for one in replicas if (cause := _cause(one, actual.now_s, limits))}
    shapes = count_shapes(desired.pools)
    attempt = [one for one in replicas if one.layout.shape in shapes and one.index >= record.counted_below]
    first = next((one for one in attempt if one.name in failed), None)
    steps: tuple[RollBack | CountFailure, ...] = ()
    if first:
        # Those that still start are of the same attempt: if they fail too, it will not be counted.
        places = places_of(one for one in attempt if one.name in failed or one.phase is Phase.STARTING)
        steps = (_count(desired, record, f"{first.name} did not start: {failed[first.name]}", places, actual),)
    after = steps[0].record if steps else record
    tries = len(after.failed_at_s)
    is_over = tries > len(limits.retry_after_s)
    waits = not is_over and tries > 0 and actual.now_s < after.failed_at_s[-1] + limits.retry_after_s[tries - 1]
    return Verdict(
        failed=failed,
        failed_on=after.failed_on,
        steps=steps,
        may_start=not (is_over or waits),
        stuck=_stuck(desired, tries) if is_over else None,
    )


def given_up(record: Record) -> Infeasible | None:
    """Why the fleet is not what was asked for, where it was rolled back."""
    if not record.given_up:
        return None
    return Infeasible(
        constraint=f"version {record.version} was rolled back: {record.given_up}",
        nearest=f"{name_pools(record.last_good or ())}; a new version is tried afresh",
    )


def _cause(one: ReplicaState, now_s: float, limits: Limits) -> str:
    if one.phase is Phase.FAILED:
        return one.cause or "no cause is known"
    if one.phase is Phase.STARTING and now_s - one.since_s >= limits.start_timeout_s:
        return f"not ready after start_timeout_s = {limits.start_timeout_s:g}" + (f": {one.cause}" if one.cause else "")
    return ""


def _count(
    desired: Desired, record: Record, cause: str, places: frozenset[Place], actual: Actual
) -> RollBack | CountFailure:
    good = record.last_good
    # What was reached once is not given up for a start that fails later, such as when lost hardware has come back.
    is_new = not (record.given_up or record.reached)
    if good and is_new and count_shapes(good) != count_shapes(desired.pools):
        back = Record(version=record.version, last_good=good, given_up=cause, counted_below=actual.next_index)
        return RollBack(model=desired.model, record=back, reason=f"Back to {name_pools(good)}: {cause}.")
    counted = replace(
        record,
        failed_at_s=(*record.failed_at_s, actual.now_s),
        failed_on=record.failed_on | places,
        counted_below=actual.next_index,
    )
    return CountFailure(
        model=desired.model, record=counted, reason=f"Attempt {len(counted.failed_at_s)} failed: {cause}."
    )


def _stuck(desired: Desired, tries: int) -> Infeasible:
    return Infeasible(
        constraint=f"{tries} attempts to start {name_pools(desired.pools)} have failed, and retry_after_s has no more",
        nearest="a new version, once the cause is mended",
    )
