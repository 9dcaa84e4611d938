"""A load test sees a fleet that is cut anew and loses a node, and proves that no stream was lost or damaged."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from running_system import Deployed
from simulated_fleet import GPUS_PER_ISLAND, TOKEN, System, ray_node

from loadtests.records import Run, read_run
from loadtests.report import RESULT_FILE, write_report
from loadtests.run import run
from loadtests.scenario import Scenario

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TOKEN_ENV = "TOKEN_OF_TEST"
LENGTHS = {
    "input": {"kind": "uniform", "least": 8, "most": 64},
    "output": {"kind": "uniform", "least": 40, "most": 200},
}
HEAD = "node-0"  # has the ingresses and the controllers


def scenario(deployed: Deployed, **changes: Any) -> Scenario:
    """Half a minute of streams of several seconds."""
    fields = {"name": "live", "url": deployed.url, "model": deployed.model, "duration_s": 30.0, "drain_s": 240.0}
    arrivals = {"kind": "poisson", "rate": 2}
    # Whether the client keeps time is judged elsewhere: replicas that start take every core of a small machine.
    judged = {"greedy": True, "max_lag_ms": 60_000.0}
    return Scenario.model_validate({**fields, **judged, "arrivals": arrivals, "lengths": LENGTHS, **changes})


def node_of(deployed: Deployed) -> dict[str, Any]:
    """A node with GPUs of the fleet, as Ray knows it; not the head."""
    return ray_node(max({seat.node for replica in deployed.view().replicas for seat in replica.seats} - {HEAD}))


def raylet_of(system: System, deployed: Deployed) -> int:
    """The process that such a node stands and falls with."""
    found = system.processes(f"--node_ip_address={node_of(deployed)['NodeManagerAddress']}")
    return next(process.pid for process in found if process.name() == "raylet")


def assert_whole(found: Run, reference: Run) -> None:
    assert Counter(record.outcome for record in found.records) == {"ok": len(reference.records)}
    assert [record.text_sha for record in found.records] == [record.text_sha for record in reference.records]
    assert found.header["invalid"] == []


def test_a_repartition_and_a_lost_node_damage_no_stream_and_are_in_the_report(system: System, tmp_path: Path) -> None:
    deployed = system.deploy({"tp2": 2})
    environ = {TOKEN_ENV: TOKEN}
    reference_path = run(scenario(deployed), tmp_path / "reference", environ)
    reference = read_run(reference_path)
    events = [
        {"at_s": 5.0, "repartition": {"pools": {"tp2": 1, "pp2": 1}}},
        {"at_s": 25.0, "kill_pid": raylet_of(system, deployed)},
    ]
    control = {"url": system.control.url, "token_env": TOKEN_ENV}
    given = scenario(deployed, check_text=str(reference_path), events=events, control=control)
    path = run(given, tmp_path / "disturbed", environ)
    assert_whole(read_run(path), reference)
    assert_told(json.loads(write_report(path, tmp_path).with_name(RESULT_FILE).read_text()))


def test_a_node_that_is_drained_beside_the_load_damages_no_stream(system: System, tmp_path: Path) -> None:
    deployed = system.deploy({"tp2": 2})
    reference_path = run(scenario(deployed), tmp_path / "reference", {})
    node = {"address": system.cluster.address, "node_id": node_of(deployed)["NodeID"], "deadline_s": 60}
    events = [{"at_s": 5.0, "drain_node": node}]
    path = run(scenario(deployed, check_text=str(reference_path), events=events), tmp_path / "disturbed", {})
    found = read_run(path)
    assert_whole(found, read_run(reference_path))
    (event,) = json.loads(write_report(path, tmp_path).with_name(RESULT_FILE).read_text())["events"]
    assert (event["kind"], event["outcome"]) == ("drain-node", "done")
    assert len({record.replica for record in found.records}) == 3, "the third replica is the one that was moved"


def assert_told(document: dict[str, Any]) -> None:
    """The report has both events, the GPUs of both shapes, and what answered."""
    done = {event["kind"]: event for event in document["events"] if event["kind"] != "gpus"}
    assert done["kill"]["outcome"] == "done"
    # How long a replica takes to start is the machine's affair.
    assert done["repartition"]["outcome"] == "done" or "not reached when the run ended" in done["repartition"]["detail"]
    gpus = [event["what"] for event in document["events"] if event["kind"] == "gpus"]
    assert gpus[0] == f"tp2={2 * GPUS_PER_ISLAND}"
    assert any("pp2=" in what for what in gpus)
    assert "tp2" in {row["name"] for row in document["by_shape"]}
