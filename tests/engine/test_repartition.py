"""A fleet is cut anew while clients stream."""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import moving_streams
import pytest
from moving_streams import Answer
from running_system import START_TIMEOUT_S, Deployed, until

from deployments.control.client import ControlError
from deployments.control.wire import PoolsTarget, Way

pytestmark = pytest.mark.engine

STREAMS = 16


def test_streams_go_on_while_the_model_is_cut_anew(deploy: Callable[..., Any]) -> None:
    """Beside the old replica, in pools of two shapes, and last where the new one needs all GPUs."""
    deployed = deploy("tiny-llama", {"tp1": 1})
    requests = moving_streams.bodies(deployed.model, STREAMS, 400)
    expected = moving_streams.run(deployed.url, requests)
    for pools, may_stall in (({"tp2": 1}, False), ({"tp1": 2, "tp2": 1}, False), ({"tp2pp2": 1}, True)):
        accepted = deployed.control.set_pools(deployed.model, PoolsTarget(pools=pools, reason="test", dry_run=True))
        assert (accepted.forecast.stall_s > 0) == may_stall
        found = moving_streams.run(deployed.url, requests, lambda wanted=pools: deployed.set_pools(wanted), after_s=0.5)
        moving_streams.assert_same(found, expected)
        if not may_stall:
            assert max(answer.longest_gap_s for answer in found) < 5  # the bar of 1 s is for a quiet machine
        shapes = [replica.shape for replica in deployed.view().replicas]
        assert sorted(shapes) == sorted(shape for shape, replicas in pools.items() for _ in range(replicas))


def test_what_cannot_be_is_refused_and_changes_nothing(deploy: Callable[..., Any]) -> None:
    deployed = deploy("tiny-llama", {"tp1": 2})
    before = deployed.view()
    refusals = {
        "tp16 on 4 GPUs": PoolsTarget(pools={"tp16": 1}, reason="test"),
        "version": PoolsTarget(pools={"tp2": 1}, reason="test", if_version=before.version + 5),
    }
    for what, target in refusals.items():
        with pytest.raises(ControlError) as refused:
            deployed.control.set_pools(deployed.model, target)
        assert refused.value.problem is not None, what
        assert refused.value.problem.status in (409, 422)
    after = deployed.view()
    assert (after.version, after.desired_pools) == (before.version, before.desired_pools)
    assert [entry.outcome for entry in deployed.control.audit(2)] == ["refused", "refused"]


# From tp1, on four GPUs: the first two find room beside the old replica, the next two do not, and the last one finds it
# replica by replica.
ROUND: tuple[dict[str, int], ...] = ({"tp2": 1}, {"pp2": 1}, {"tp2pp2": 1}, {"pp2": 2}, {"tp1": 1})
WAYS: tuple[Way, ...] = ("surge", "surge", "swap", "swap", "rolling")
ROUNDS = 4
CLIENTS = 40
LEAST_STREAMS = 2000
CALM_S = 3.0  # between two repartitions: what stood still in the first goes on before the second
# On a quiet machine they are 1 s, and 2 starts of the engine.
MOST_GAP_S = 3.0
MOST_STARTS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repartition:
    """One that is over, with the calm after it; `start_s` is how long the last engine of its shape took to start."""

    way: Way | None
    began_s: float
    ended_s: float
    start_s: float

    def longest_gap_s(self, answers: Iterable[Answer]) -> float:
        """For how long a stream stood still in it, at the most."""
        gaps = (gap for answer in answers for gap in answer.gaps)
        return max((gap.s for gap in gaps if self.began_s < gap.until_s <= self.ended_s), default=0.0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_repartitions_under_two_thousand_streams(
    deploy: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deployed = deploy("tiny-llama", {"tp1": 1})
    requests = moving_streams.bodies(deployed.model, 48, 150)
    expected = moving_streams.run(deployed.url, requests)
    done: list[Repartition] = []

    def repartition() -> None:
        for pools in ROUND * ROUNDS:
            done.append(repartitioned(deployed, pools))

    found = moving_streams.keep_on(deployed.url, requests, repartition, clients=CLIENTS, at_least=LEAST_STREAMS)
    for index, answer in found:
        moving_streams.assert_same_stream(index, answer, expected[index])
    assert len(found) >= LEAST_STREAMS
    assert tuple(one.way for one in done) == WAYS * ROUNDS
    gaps_s = {one: one.longest_gap_s(answer for _, answer in found) for one in done}
    longest_s = {way: max(gap_s for one, gap_s in gaps_s.items() if one.way == way) for way in dict.fromkeys(WAYS)}
    starts = max(gap_s / one.start_s for one, gap_s in gaps_s.items() if one.way == "swap")
    figures = ", ".join(f"{way} {gap_s:.2f} s" for way, gap_s in longest_s.items())
    with capsys.disabled():
        sys.stdout.write(f"\n{len(done)} repartitions, {len(found)} streams; the longest gap of any: {figures}\n")
        sys.stdout.write(f"a swap's longest gap: {starts:.2f} starts of its engine\n")
    assert max(longest_s["surge"], longest_s["rolling"]) < MOST_GAP_S
    assert starts < MOST_STARTS


def repartitioned(deployed: Deployed, pools: dict[str, int]) -> Repartition:
    """Cut the fleet anew."""
    began_s = time.monotonic()
    accepted = deployed.control.set_pools(deployed.model, PoolsTarget(pools=pools, reason="test"))
    until(lambda: deployed.is_steady(accepted.version), f"{pools} serves", timeout_s=START_TIMEOUT_S)
    time.sleep(CALM_S)
    (shape,) = pools
    start_s = deployed.view().start_s[shape]
    return Repartition(way=accepted.forecast.way, began_s=began_s, ended_s=time.monotonic(), start_s=start_s)
