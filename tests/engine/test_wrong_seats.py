"""Where replicas sit: beside each other, and nowhere else than planned."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from running_system import stream

from deployments import fleet
from deployments.islands import Inventory

pytestmark = pytest.mark.engine


def test_two_replicas_share_the_requests(plan_of: Callable[..., Any], deploy: Callable[..., Any]) -> None:
    deployed = deploy(plan_of("tiny-llama", "tp1", replicas=2))
    with httpx.Client() as client, stream(deployed, client) as one, stream(deployed, client) as two:
        running = [one.iter_lines(), two.iter_lines()]
        assert all(next(lines).startswith("data: ") for lines in running)
        reports = fleet.reports(deployed.plan.replica_names)
    assert [report.unfinished_requests for report in reports.values()] == [1, 1]


def test_a_replica_in_the_wrong_place_is_refused(
    cluster: Inventory, plan_of: Callable[..., Any], clear: Callable[[], None]
) -> None:
    clear()
    plan = plan_of("tiny-llama", "tp1")
    swapped = {"node-0": cluster.selectors["node-1"], "node-1": cluster.selectors["node-0"]}
    fleet.deploy(plan, replace(cluster, selectors=swapped))
    with pytest.raises(fleet.FleetStartError) as refused:
        fleet.wait_until_running(plan, lambda name, state: None)
    assert "rank 0 (stage 0, tp 0): wanted node-0 in island-0, found node-1" in str(refused.value)
    assert "Traceback" not in str(refused.value)
    fleet.delete((plan.ingress_name, *plan.replica_names), drain_timeout_s=0)
