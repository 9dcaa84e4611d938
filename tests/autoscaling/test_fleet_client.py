from collections.abc import Callable
from typing import Any

import httpx
import pytest
from control_builders import MODEL, READ, REPLICA, UNDER_WAY, URL, WRITE, Bridge, MemoryFleet, fleet_view
from loop_builders import HARDWARE, pools, replicas_of

from autoscaling.live.fleet_client import (
    MOST_REASON_CHARACTERS,
    AwayError,
    ConflictError,
    FleetClient,
    HardwareError,
    RefusedError,
    Target,
    cluster_of,
    fleet_of,
)
from autoscaling.observation import Fleet
from deployments.control.wire import ClusterView, NodeView, Overview, SeatView
from placement import Cluster, Shape

TWO = pools("2 x tp2")


def client(fleet: MemoryFleet, token: str = WRITE) -> FleetClient:
    return FleetClient(URL, token, transport=Bridge(fleet))


def answering(respond: Callable[[httpx.Request], httpx.Response]) -> FleetClient:
    return FleetClient(URL, WRITE, timeout_s=3, transport=httpx.MockTransport(respond))


def target(**changes: object) -> Target:
    return Target(**{"pools": TWO, "reason": "a test", "if_version": 3, **changes})  # type: ignore[arg-type]


def seen(fleet: MemoryFleet, hardware: Cluster | None = HARDWARE, model: str = MODEL) -> Fleet:
    with client(fleet, READ) as control:
        overview = control.overview()
    view = overview.fleet(model)
    assert view is not None
    return fleet_of(view, overview, hardware)


def test_a_fleet_is_read_as_the_control_api_says() -> None:
    starting = replicas_of({"tp4": 1}, "starting")
    wanted = {"tp4": 1, "tp2": 1}
    view = fleet_view(
        desired_pools=wanted,
        version=7,
        shortfall="node-1 is gone",
        replicas=(*replicas_of({"tp2": 1}), *starting, *replicas_of({"tp1": 1}, "draining")),
        start_s={"tp2": 31.5},
    )
    fleet = seen(MemoryFleet(view))
    assert (fleet.version, fleet.shortfall, fleet.changing) == (7, "node-1 is gone", False)
    assert fleet.desired == pools("1 x tp2 + 1 x tp4")
    assert (fleet.serving, fleet.starting) == (pools("1 x tp2"), pools("1 x tp4"))
    with client(MemoryFleet(view)) as control:
        found = control.overview().fleet(MODEL)
    assert found is not None
    assert found.starts_s == {Shape(tp=2): 31.5}


@pytest.mark.parametrize(
    ("changes", "is_changing"),
    [
        ({}, False),
        ({"repartition": UNDER_WAY}, True),
        ({"phase": "repartitioning"}, True),
        ({"phase": "starting"}, True),
        ({"phase": "rolling-back"}, True),
        ({"phase": "degraded"}, False),
    ],
)
def test_whether_the_target_is_still_on_its_way(changes: dict[str, Any], is_changing: bool) -> None:
    assert seen(MemoryFleet(fleet_view(**changes))).changing is is_changing


class _Hardware(MemoryFleet):
    """A fleet whose nodes are given."""

    nodes: tuple[NodeView, ...] = ()

    async def read(self) -> Overview:
        return Overview(cluster=ClusterView(nodes=self.nodes), fleets=tuple(self.views.values()))


def with_nodes(*nodes: NodeView) -> _Hardware:
    seats = tuple(SeatView(rank=slot, island="i0", node="a", slot=slot) for slot in range(4))
    fleet = _Hardware(fleet_view(replicas=(REPLICA.model_copy(update={"seats": seats}),)), fleet_view("other"))
    fleet.nodes = nodes
    return fleet


def test_a_model_may_use_what_is_free_and_what_it_holds_but_nothing_that_goes() -> None:
    fleet = with_nodes(
        NodeView(name="a", island="i0", gpus=8, free_gpus=1),
        NodeView(name="b", island="i1", gpus=8, free_gpus=3),
        NodeView(name="c", island="i1", gpus=8, free_gpus=0),
        NodeView(name="d", island="i2", gpus=8, free_gpus=8, draining=True),
    )
    found = seen(fleet)
    assert [(node.name, node.island, node.gpus) for node in found.cluster.nodes] == [("a", "i0", 5), ("b", "i1", 3)]
    assert {node.gpu for node in found.cluster.nodes} == {HARDWARE.nodes[0].gpu}
    with client(fleet) as control:
        assert cluster_of(control.overview(), HARDWARE).gpus == 24


def test_gpus_are_what_the_control_api_says_where_the_settings_do_not() -> None:
    known = NodeView(
        name="a", island="i0", gpus=4, free_gpus=4, gpu="NVIDIA-H100-80GB-HBM3", gpu_memory_bytes=85 * 10**9
    )
    (node,) = seen(with_nodes(known), None).cluster.nodes
    assert (node.gpu.name, node.gpu.memory_bytes) == ("NVIDIA-H100-80GB-HBM3", 85 * 10**9)
    with pytest.raises(HardwareError, match="what GPUs node a has; say it with `cluster`"):
        seen(with_nodes(known.model_copy(update={"gpu": None})), None)


def test_pools_are_set_with_reason_lease_and_version() -> None:
    fleet = MemoryFleet()
    with client(fleet) as control:
        assert control.hold_lease("autoscaler", "me", 30) == 30
        assert control.set_pools(MODEL, target(lease="autoscaler", holder="me")) == 4
    assert fleet.entries[0].reason == "a test"
    assert fleet.views[MODEL].desired_pools == {"tp2": 2}


def test_without_the_lease_nothing_is_set() -> None:
    fleet = MemoryFleet()
    with client(fleet) as control:
        control.hold_lease("autoscaler", "somebody else", 30)
        with pytest.raises(ConflictError, match="autoscaler is held by somebody else"):
            control.hold_lease("autoscaler", "me", 30)
        with pytest.raises(ConflictError, match="me does not hold autoscaler"):
            control.set_pools(MODEL, target(lease="autoscaler", holder="me"))
        control.release_lease("autoscaler", "somebody else")
        assert control.hold_lease("autoscaler", "me", 30) == 30
    assert fleet.views[MODEL] == fleet_view()


@pytest.mark.parametrize(
    ("changes", "model", "kind", "sentence"),
    [
        ({"if_version": 1}, MODEL, ConflictError, "if_version: 1 is not the version of acme/tiny any more; it is 3"),
        ({"pools": pools("9 x tp2")}, MODEL, RefusedError, "does not fit: it needs 18 GPUs; there are 8"),
        ({}, "acme/tine", RefusedError, "did you mean acme/tiny"),
    ],
)
def test_a_refusal_is_the_sentence_of_the_server(
    changes: dict[str, object], model: str, kind: type[Exception], sentence: str
) -> None:
    with client(MemoryFleet()) as control, pytest.raises(kind, match=sentence):
        control.set_pools(model, target(**changes))


@pytest.mark.parametrize("reason", ["two\nlines", "\x1b[31mred", "x" * 3000])
def test_any_reason_is_sent_as_a_line_that_is_accepted(reason: str) -> None:
    fleet = MemoryFleet()
    with client(fleet) as control:
        control.set_pools(MODEL, target(reason=reason))
    assert len(fleet.entries[0].reason) <= MOST_REASON_CHARACTERS


def test_who_is_away_is_named_and_may_have_heard() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow")

    with answering(gone) as control, pytest.raises(AwayError, match=r"control\.test cannot be reached \(Connection"):
        control.overview()
    with answering(slow) as control, pytest.raises(AwayError, match=r"did not answer within 3 s"):
        control.set_pools(MODEL, target())
    fleet = MemoryFleet()
    fleet.is_away = True
    with client(fleet) as control, pytest.raises(AwayError, match=r"The controller is starting again"):
        control.overview()


@pytest.mark.parametrize("body", ["<html>", '{"detail": "Not Found"}', '{"cluster": {}}', ""])
@pytest.mark.parametrize("status", [200, 302, 500])
def test_another_server_is_not_taken_for_the_control_api(status: int, body: str) -> None:
    with (
        answering(lambda request: httpx.Response(status, text=body)) as control,
        pytest.raises(AwayError, match="not as the control API"),
    ):
        control.overview()


@pytest.mark.parametrize("token", ["", "se cret", "secret\n", "secr\u00e9t"])
def test_a_token_that_cannot_be_sent_is_refused_unseen(token: str) -> None:
    with pytest.raises(RefusedError, match=r"^token: ") as error:
        FleetClient(URL, token)
    assert not token or token not in str(error.value)


def test_a_token_that_may_only_read_changes_nothing() -> None:
    with client(MemoryFleet(), READ) as control, pytest.raises(RefusedError):
        control.set_pools(MODEL, target())
