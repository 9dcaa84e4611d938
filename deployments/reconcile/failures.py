"""Starts that failed: whose fault it was, whether to roll back, and when to try again.

The replicas of one attempt fail one after the other; they count once, because only replicas that were named after the
last count can be of a new attempt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deployments.reconcile.states import Actual, Desired, Limits, Phase, Record, ReplicaState, count_shapes, name_pools
from deployments.reconcile.steps import CountFailure, RollBack
from placement.layout import Infeasible


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the starts of one model.

    `failed` maps names of replicas to causes; `stuck` says why nothing is started any more; `may_start` is also False
    while the next attempt waits.
    """

    failed: Mapping[str, str]
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
    steps: tuple[RollBack | CountFailure, ...] = ()
    for one in replicas:
        if one.name in failed and one.layout.shape in shapes and one.index >= record.counted_below:
            steps = (_count(desired, record, f"{one.name} did not start: {failed[one.name]}", actual),)
            break
    after = steps[0].record if steps else record
    tries = len(after.failed_at_s)
    if tries > len(limits.retry_after_s):
        return Verdict(failed=failed, steps=steps, may_start=False, stuck=_stuck(desired, tries))
    waits = tries > 0 and actual.now_s < after.failed_at_s[-1] + limits.retry_after_s[tries - 1]
    return Verdict(failed=failed, steps=steps, may_start=not waits)


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


def _count(desired: Desired, record: Record, cause: str, actual: Actual) -> RollBack | CountFailure:
    good = record.last_good
    # What was reached once is not given up for a start that fails later, such as when lost hardware has come back.
    is_new = not (record.given_up or record.reached)
    if good and is_new and count_shapes(good) != count_shapes(desired.pools):
        back = replace(record, given_up=cause, reached=False, failed_at_s=(), counted_below=actual.next_index)
        return RollBack(model=desired.model, record=back, reason=f"Back to {name_pools(good)}: {cause}.")
    counted = replace(record, failed_at_s=(*record.failed_at_s, actual.now_s), counted_below=actual.next_index)
    return CountFailure(
        model=desired.model, record=counted, reason=f"Attempt {len(counted.failed_at_s)} failed: {cause}."
    )


def _stuck(desired: Desired, tries: int) -> Infeasible:
    return Infeasible(
        constraint=f"{tries} attempts to start {name_pools(desired.pools)} have failed, and retry_after_s has no more",
        nearest="a new version, once the cause is mended",
    )
