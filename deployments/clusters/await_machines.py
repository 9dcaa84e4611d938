"""`python -m deployments.clusters.await_machines CONFIG`: waits until every machine that `ray up` starts has joined.

`ray up` returns when the head runs; the head's autoscaler then sets up the workers, which takes minutes. What is served
is placed on the islands that are there, so it must not be started before.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

log = logging.getLogger(__name__)

POLL_S = 1.0
DEFAULT_TIMEOUT_S = 3600.0  # installing takes minutes, and clouds let one wait for large machines


def wanted_machines(bootstrap: Mapping[str, Any]) -> int:
    """How many machines `ray up` keeps: the head, and the least number of each type of worker.

    Args:
        bootstrap: the cluster's configuration as Ray leaves it on the head, in ~/ray_bootstrap_config.yaml.
    """
    return 1 + sum(int(kind.get("min_workers", 0)) for kind in bootstrap["available_node_types"].values())


def joined_machines(ray_nodes: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Addresses of the machines that are part of the cluster; one may be several Ray nodes, an island each.

    Args:
        ray_nodes: as ``ray.nodes()`` returns them.
    """
    return frozenset(str(node["NodeManagerAddress"]) for node in ray_nodes if node["Alive"])


def main(argv: Sequence[str] | None = None) -> int:
    """Wait; 0 when all have joined, 1 when time is up."""
    parser = argparse.ArgumentParser(prog="await_machines", description="Wait for the machines of a cluster.")
    parser.add_argument("config", type=Path, help="what `ray up` leaves on the head: ~/ray_bootstrap_config.yaml")
    parser.add_argument("--timeout-s", type=float, default=DEFAULT_TIMEOUT_S, help="seconds; default: %(default)g")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    wanted = wanted_machines(json.loads(arguments.config.read_text()))
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    try:
        return 0 if _have_joined(wanted, time.monotonic() + arguments.timeout_s) else 1
    finally:
        ray.shutdown()


def _have_joined(wanted: int, deadline_s: float) -> bool:
    before = None
    while True:
        joined = joined_machines(ray.nodes())  # type: ignore[no-untyped-call]
        if joined != before:
            log.info("%d of %d machines have joined: %s", len(joined), wanted, ", ".join(sorted(joined)))
            before = joined
        if len(joined) >= wanted:
            return True
        if time.monotonic() > deadline_s:
            log.error("time is up; /tmp/ray/session_latest/logs/monitor.log says what the autoscaler is doing")
            return False
        time.sleep(POLL_S)


if __name__ == "__main__":
    raise SystemExit(main())
