"""Where replicas sit: beside each other, and nowhere else than planned."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from running_system import stream, until

from deployments import fleet
from deployments.islands import Inventory
from placement import Layout, Shape, place

pytestmark = pytest.mark.engine

NAME = "misplaced"  # not named like a replica: the controller would delete what it has no record of


@pytest.mark.slow
def test_two_replicas_share_the_requests(deploy: Callable[..., Any]) -> None:
    deployed = deploy("tiny-llama", {"tp1": 2})
    with httpx.Client() as client, stream(deployed, client) as one, stream(deployed, client) as two:
        running = [one.iter_lines(), two.iter_lines()]
        assert all(next(lines).startswith("data: ") for lines in running)
        reports = deployed.reports()
    assert [report.unfinished_requests for report in reports.values()] == [1, 1]


def test_a_replica_in_the_wrong_place_is_refused(
    cluster: Inventory, plan_of: Callable[..., Any], clear: Callable[[], None]
) -> None:
    clear()
    layout = place(Shape.parse("tp1"), cluster.cluster)
    assert isinstance(layout, Layout)
    swapped = {"node-0": cluster.selectors["node-1"], "node-1": cluster.selectors["node-0"]}
    fleet.start_replica(plan_of("tiny-llama"), NAME, layout, replace(cluster, selectors=swapped), "secret")
    try:
        until(lambda: fleet.has_failed(fleet.applications()[NAME]), "the replica has refused", timeout_s=240)
        cause = fleet.cause_of(fleet.applications()[NAME])
    finally:
        fleet.delete(NAME)
    assert "rank 0 (stage 0, tp 0): wanted node-0 in island-0, found node-1" in cause
    assert "Traceback" not in cause
    until(lambda: NAME not in fleet.applications() and NAME not in fleet.seated_applications(), "it has gone")
