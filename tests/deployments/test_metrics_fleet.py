"""What the control API tells Prometheus of the fleets."""

from collections.abc import Iterator

import httpx
import pytest
from control_builders import MODEL, READ, REPLICA, UNDER_WAY, MemoryFleet, control_client, fleet_view, raw_client
from prometheus_client.parser import text_string_to_metric_families

from deployments.control.wire import ClusterView, FleetView, NodeView, Overview, Transitions
from deployments.metrics.fleet_series import exposition

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(overview: Overview) -> Series:
    return parsed(exposition(overview)[0].decode())


def parsed(text: str) -> Series:
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"archipelago_{name}", frozenset(labels.items())


def nodes() -> Iterator[NodeView]:
    for name, island, free_gpus, draining in (("n0", "i0", 3, False), ("n1", "i0", 1, True), ("n2", "i1", 2, False)):
        yield NodeView(name=name, island=island, gpus=4, free_gpus=free_gpus, draining=draining)


CLUSTER = ClusterView(nodes=tuple(nodes()))


def test_the_hardware_by_island_without_what_is_about_to_go() -> None:
    assert series(Overview(cluster=CLUSTER, fleets=())) == {
        key("cluster_gpus"): 12,
        key("cluster_free_gpus"): 5,
        key("island_gpus", island="i0"): 8,
        key("island_gpus", island="i1"): 4,
        key("island_free_gpus", island="i0"): 3,
        key("island_free_gpus", island="i1"): 2,
        key("island_stranded_gpus", island="i0"): 0,
        key("island_stranded_gpus", island="i1"): 0,
        key("node_draining", island="i0", node="n0"): 0,
        key("node_draining", island="i0", node="n1"): 1,
        key("node_draining", island="i1", node="n2"): 0,
    }


def under_way() -> FleetView:
    replicas = (REPLICA, REPLICA.model_copy(update={"shape": "tp4", "phase": "starting", "name": "new"}))
    return fleet_view(
        phase="repartitioning",
        desired_pools={"tp4": 2},
        effective_pools={"tp4": 1},
        replicas=replicas,
        start_s={"tp2pp2": 41.5},
        repartition=UNDER_WAY,
        transitions=(
            Transitions(way="surge", outcome="reached", count=3),
            Transitions(way="swap", outcome="rolled-back", count=1),
        ),
    )


def test_a_fleet_on_its_way() -> None:
    found = series(Overview(cluster=ClusterView(nodes=()), fleets=(under_way(),)))
    expected = {
        key("fleet_version", model=MODEL): 3,
        key("fleet_gpus", model=MODEL): 8,
        key("fleet_desired_replicas", model=MODEL, shape="tp2pp2"): 0,
        key("fleet_desired_replicas", model=MODEL, shape="tp4"): 2,
        key("fleet_effective_replicas", model=MODEL, shape="tp4"): 1,
        key("fleet_phase", model=MODEL, phase="repartitioning"): 1,
        key("fleet_phase", model=MODEL, phase="steady"): 0,
        key("repartition_running_seconds", model=MODEL): 12,
        key("repartition_announced_stall_seconds", model=MODEL): 0.8,
        key("island_used_gpus", island="island-0", model=MODEL, shape="tp2pp2"): 2,
        key("island_link_ranks", source="island-0", destination="island-1", model=MODEL, shape="tp2pp2"): 2,
        key("replica_start_seconds", model=MODEL, shape="tp2pp2"): 41.5,
        key("transitions_total", model=MODEL, way="surge", outcome="reached"): 3,
        key("transitions_total", model=MODEL, way="swap", outcome="rolled-back"): 1,
        key("transitions_total", model=MODEL, way="swap", outcome="failed"): 0,
        key("fleet_replicas", model=MODEL, shape="tp2pp2", phase="serving"): 1,
        key("fleet_replicas", model=MODEL, shape="tp2pp2", phase="starting"): 0,
        key("fleet_replicas", model=MODEL, shape="tp4", phase="serving"): 0,
        key("fleet_replicas", model=MODEL, shape="tp4", phase="starting"): 1,
        key("fleet_replicas", model=MODEL, shape="tp4", phase="failed"): 0,
    }
    assert expected.items() <= found.items()
    assert {name for name, _ in found} == {name for name, _ in expected} | {
        key("cluster_gpus")[0],
        key("cluster_free_gpus")[0],
    }


def test_a_reader_scrapes_the_control_api_and_a_stranger_does_not() -> None:
    fleet = MemoryFleet(under_way())
    with raw_client(fleet, READ) as http:
        answer = http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert parsed(answer.text)[key("fleet_version", model=MODEL)] == 3
    with raw_client(fleet, None) as http:
        assert http.get("/metrics").status_code == httpx.codes.UNAUTHORIZED
        assert http.get("/v1/metrics-targets").status_code == httpx.codes.UNAUTHORIZED


def test_prometheus_is_told_where_the_ingresses_are() -> None:
    fleet = MemoryFleet()
    with raw_client(fleet, READ) as http:
        answer = http.get("/v1/metrics-targets")
        assert answer.headers["content-type"] == "application/json"  # anything else http_sd_configs refuses
        assert answer.json() == [{"targets": ["10.0.0.1:9000", "10.0.0.2:9000"], "labels": {"model": MODEL}}]
    with control_client(fleet) as client:
        (target,) = client.metrics_targets()
        assert target.targets == fleet.addresses[MODEL]


@pytest.mark.parametrize("path", ["/metrics", "/v1/fleet"])
def test_a_controller_that_is_away_is_no_empty_fleet(path: str) -> None:
    fleet = MemoryFleet()
    fleet.is_away = True
    with raw_client(fleet) as http:
        assert http.get(path).status_code == httpx.codes.SERVICE_UNAVAILABLE
