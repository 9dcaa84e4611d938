"""Several models on one cluster: none takes what another gives up for a moment, on its way to other pools."""

from pathlib import Path

import pytest
from controller_builders import MODEL, MemoryServe, model_record, without
from controller_running import Begin, Controller, begin, check_nothing_is_left_over
from placement_builders import cluster_of

from deployments.control.audit import AuditLog
from deployments.control.refusals import Refusal
from deployments.control.wire import Accepted, PoolsTarget
from deployments.controller.targets import Targets
from deployments.reconcile import count_shapes

__all__ = ["begin"]
OTHER = "acme/other"
NODES = ("island-0-node-0", "island-1-node-0", "island-2-node-0")


def pools(controller: Controller, model: str) -> dict[str, int]:
    """What serves of a model."""
    found: dict[str, int] = {}
    for one in controller.reconciler.replicas:
        if one.model == model and one.phase == "serving":
            found[str(one.layout.shape)] = found.get(str(one.layout.shape), 0) + 1
    return found


def targets(controller: Controller, folder: Path) -> Targets:
    log = AuditLog(folder / "audit.jsonl")
    return Targets(controller.reconciler, controller.events, log, dict, now=lambda: controller.serve.now_s)


@pytest.mark.parametrize("wanted", [{"tp1": 3}, {"pp2": 1, "tp1": 1}], ids=str)
def test_what_a_model_frees_for_itself_is_not_taken_by_one_that_is_short(
    wanted: dict[str, int], begin: Begin, tmp_path: Path
) -> None:
    controller = begin("3 tp1", MemoryServe(cluster=cluster_of(2, 2, 2)))
    controller.settle()
    controller.store.put_model(model_record("1 tp2, 1 tp1", model=OTHER))
    controller.settle()
    assert (pools(controller, MODEL), pools(controller, OTHER)) == ({"tp1": 3}, {"tp2": 1, "tp1": 1})
    lost = {seat.node for one in controller.reconciler.replicas if one.model == MODEL for seat in one.layout.seats}
    gone = next(node for node in NODES if node in lost and not _has_other(controller, node))
    controller.serve.cluster = without(controller.serve.cluster, [gone])
    controller.settle()
    assert pools(controller, MODEL) == {"tp1": 1}, "it is short of two"
    answer = targets(controller, tmp_path).set_pools(OTHER, PoolsTarget(pools=wanted, reason="a test"), "alice")
    assert isinstance(answer, Accepted), answer
    for _ in range(100):
        controller.turn()
    assert pools(controller, OTHER) == wanted
    assert pools(controller, MODEL) == {"tp1": 1}
    check_nothing_is_left_over(controller)


def _has_other(controller: Controller, node: str) -> bool:
    others = (one for one in controller.reconciler.replicas if one.model == OTHER)
    return any(seat.node == node for one in others for seat in one.layout.seats)


def test_a_target_for_seats_that_another_model_waits_for_is_refused(begin: Begin, tmp_path: Path) -> None:
    controller = begin("2 tp2")
    controller.settle()
    controller.store.put_model(model_record("", model=OTHER))
    api = targets(controller, tmp_path)
    assert isinstance(api.set_pools(MODEL, PoolsTarget(pools={"pp2": 2}, reason="a test"), "alice"), Accepted)
    while controller.reconciler.replicas == () or pools(controller, MODEL) != {"tp2": 1}:
        controller.turn()
    controller.store.put_model(model_record("1 tp1", model=OTHER))
    answer = api.set_pools(OTHER, PoolsTarget(pools={"tp2": 1}, reason="a test"), "bob")
    assert isinstance(answer, Refusal)
    assert answer.kind == "does-not-fit"
    controller.settle()
    assert count_shapes(controller.store.models[MODEL].memory.last_good or ()).total() == 2
    assert pools(controller, MODEL) == {"pp2": 2}
