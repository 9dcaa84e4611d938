"""Clusters as Ray tells of them, and replicas as they tell of themselves, for the tests of `deployments`."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from deployments.islands import ISLAND_LABEL, MACHINE_LABEL, NODE_LABEL, RAY_NODE_ID_LABEL
from deployments.replica import ReplicaReport
from deployments.verification import Found, Whereabouts
from placement import Cluster, Layout, Shape, place

MIB = 2**20


def ray_node(
    node_id: str,
    *,
    gpus: float = 2,
    name: str = "10.0.0.1",
    address: str = "",
    alive: bool = True,
    island: str = "",
    node: str = "",
    machine: str = "",
    **labels: str,
) -> dict[str, Any]:
    """One entry of `ray.nodes()`, at an address of its own; `labels` are labels that are not ours."""
    ours = {ISLAND_LABEL: island, NODE_LABEL: node, MACHINE_LABEL: machine}
    return {
        "NodeID": node_id,
        "NodeName": name,
        "NodeManagerAddress": address or f"address of {node_id}",
        "Alive": alive,
        "Resources": {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {}),
        "Labels": {RAY_NODE_ID_LABEL: node_id} | {label: value for label, value in ours.items() if value} | labels,
    }


def ray_id(node: str) -> str:
    """The Ray id of a node of a built cluster."""
    return f"{node.encode().hex():0<56}"


def ray_nodes_of(cluster: Cluster, *, labelled: bool = True) -> list[Any]:
    """What `ray.nodes()` would return for a cluster: its nodes, and a head without GPUs."""
    nodes = [ray_node("head", gpus=0)]
    for node in cluster.nodes:
        island, label = (node.island, node.name) if labelled else ("", "")
        nodes.append(ray_node(ray_id(node.name), gpus=node.gpus, name=node.name, island=island, node=label))
    return nodes


def layout_of(shape: str, cluster: Cluster) -> Layout:
    """The layout of a shape that fits the cluster."""
    layout = place(Shape.parse(shape), cluster)
    assert isinstance(layout, Layout), str(layout)
    return layout


def names_of(cluster: Cluster) -> dict[str, str]:
    """From Ray ids to node names."""
    return {ray_id(node.name): node.name for node in cluster.nodes}


def found_as_planned(layout: Layout) -> Found:
    """What a replica reports that is exactly where its layout puts it."""
    workers = tuple(
        Whereabouts(
            dp_rank=seat.dp_rank,
            pp_rank=seat.pp_rank,
            tp_rank=seat.tp_rank,
            ray_node_id=ray_id(seat.node),
            ray_actor_id=f"actor-{seat.rank}",
            gpu_ids=(str(seat.slot),),
            pid=1000 + seat.rank,
            memory_bytes=(100 + seat.rank) * MIB,
        )
        for seat in layout.seats
    )
    bundle_nodes = tuple(worker.ray_node_id for worker in workers)
    return Found(replica_node=bundle_nodes[0], bundle_nodes=bundle_nodes, workers=workers)


def report_of(layout: Layout, **changes: Any) -> ReplicaReport:
    """What a replica says of itself that runs as planned and has nothing to do."""
    fields: dict[str, Any] = {
        "layout": layout,
        "found": found_as_planned(layout),
        "node_names": {ray_id(seat.node): seat.node for seat in layout.seats},
        "host": "10.0.0.1",
        "port": 9000,
        "unfinished_requests": 0,
        "max_running": 64,
        "kv_tokens": 8192,
    }
    return ReplicaReport(**fields | changes)


def with_worker(found: Found, rank: int, **changes: Any) -> Found:
    """The same with one worker changed; `node` is the name of the node where it is."""
    if "node" in changes:
        changes["ray_node_id"] = ray_id(changes.pop("node"))
    workers = list(found.workers)
    workers[rank] = replace(workers[rank], **changes)
    return replace(found, workers=tuple(workers))


def with_bundle(found: Found, rank: int, node: str) -> Found:
    """The same with one bundle on another node."""
    nodes = list(found.bundle_nodes)
    nodes[rank] = ray_id(node)
    return replace(found, bundle_nodes=tuple(nodes))


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers everything with one status; its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
