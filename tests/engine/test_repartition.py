"""A fleet is cut anew while clients stream."""

from collections.abc import Callable
from typing import Any

import moving_streams
import pytest
from running_system import until

from deployments.control.client import ControlError
from deployments.control.wire import PoolsTarget

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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_repartitions_under_two_thousand_streams(deploy: Callable[..., Any]) -> None:
    deployed = deploy("tiny-llama", {"tp1": 1})
    requests = moving_streams.bodies(deployed.model, 48, 150)
    expected = moving_streams.run(deployed.url, requests)

    def repartition() -> None:
        for shape in ["tp2", "pp2", "tp1", "tp2pp2", "tp1"] * 4:
            deployed.set_pools({shape: 1})
            until(lambda one=shape: [each.shape for each in deployed.view().replicas] == [one], f"{shape} alone serves")

    found = moving_streams.keep_on(deployed.url, requests, repartition, clients=40, at_least=2000)
    for index, answer in found:
        moving_streams.assert_same_stream(index, answer, expected[index])
