"""`ray up` with the file for one's own machines, on machines made of namespaces: serves, and then nothing is left."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_up_machines import ROOT, Machine, left_over, machines, missing
from running_system import until

from deployments.islands import ISLAND_LABEL, NODE_LABEL

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

CLUSTER = "deployments/clusters/local.yaml"
RAY = f"{sys.prefix}/bin/ray"
# What `git archive` would pack is not all that this tree has while somebody works on it.
RELEASE = "Makefile pyproject.toml README.md LICENSE placement autoscaling deployments loadtests helm"
WORKERS = ("worker-1", "worker-2")
GPUS = 2
TOKEN_FILE = ".archipelago/control-token"
START_TIMEOUT_S = 420
END_TIMEOUT_S = 240  # a raylet waits a minute for its head to come back, its agents another
# No GPU is here: Ray is told how many there are, and who asks the driver for their memory gets an answer.
DRIVER = "#!/bin/sh\n" + "echo 81559\n" * GPUS
MODEL = {
    "source": "tiny-llama",
    "shape": f"tp{GPUS}",
    "replicas": len(WORKERS),
    "simulated": {"gpu": "h100_sxm"},
    "engine": {"max_model_len": 2048, "max_num_seqs": 64, "hf_token": "hf_of_somebody"},
}
SERVED = {
    "models": [MODEL],
    "cluster": {"kind": "ray", "address": "auto"},
    "limits": {"start_timeout_s": START_TIMEOUT_S},
}
AUTOSCALER = {
    "prometheus": {"scrape_interval_s": 5},
    "models": [
        {"model": "tiny-llama", "source": "tiny-llama", "cluster": "2x dgx-h100", "slo": {"ttft": "1s", "tpot": "50ms"}}
    ],
}
# What Ray's dashboard shows.
SHOWN = ("/api/v0/actors?detail=1", "/api/v0/tasks?detail=1&limit=10000", "/api/v0/workers?detail=1", "/logical/actors")
SHOWN += ("/nodes?view=summary", "/api/serve/applications/", "/api/v0/runtime_envs", "/api/v0/cluster_metadata")
ASKED = {"model": "tiny-llama", "prompt": "Hello", "max_tokens": 16, "ignore_eos": True}
NODES = """
import json, ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print(json.dumps([[node["Labels"], node["Resources"].get("GPU", 0)] for node in ray.nodes() if node["Alive"]]))
"""


@pytest.fixture
def up(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    """An operator's machine with a checkout and the edited file, a head, and workers with GPUs."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    with_gpus = {name: {"bin/nvidia-smi": DRIVER} for name in WORKERS}
    with machines(tmp_path, {"operator": {}, "head": {}, **with_gpus}) as made:
        operator = made["operator"]
        operator.run(
            f"mkdir -p build && cp -r {ROOT}/deployments . && tar -czf build/archipelago.tar.gz -C {ROOT} {RELEASE}"
        )
        operator.run(f"cat > {CLUSTER}", given=yaml.safe_dump(edited(made)))
        operator.run("cat > serve.yaml", given=yaml.safe_dump(SERVED))
        yield made
    assert left_over() == []


def edited(up: dict[str, Machine]) -> dict[str, Any]:
    """The file with the edits that its comments ask for, and GPUs that Ray is told of."""
    config: dict[str, Any] = yaml.safe_load((ROOT / CLUSTER).read_text())
    config["provider"] |= {"head_ip": up["head"].ip, "worker_ips": [up[name].ip for name in WORKERS]}
    config["auth"]["ssh_user"] = "root"
    config["file_mounts"]["~/serve.yaml"] = "serve.yaml"
    config["setup_commands"] = [command.replace("ENGINE=cuda", "ENGINE=cpu") for command in config["setup_commands"]]
    config["worker_start_ray_commands"] = [
        command.replace("ray start", f"ray start --num-gpus={GPUS}") for command in config["worker_start_ray_commands"]
    ]
    return config


def ask(head: Machine, url: str, body: dict[str, Any] | None = None) -> Any:
    """What an address of the head answers, in JSON; None while it does not."""
    data = f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}" if body else ""
    token = f'-H "Authorization: Bearer $(cat {TOKEN_FILE})"' if ":8001/" in url else ""
    answer = head.run(f"curl --globoff --silent --fail {data} {token} {shlex.quote(url)} || true")
    return json.loads(answer) if answer else None


def test_up_serves_and_down_leaves_nothing(up: dict[str, Machine]) -> None:
    operator, head = up["operator"], up["head"]
    operator.run(f"{RAY} get-auth-token --generate")
    operator.run(f"{RAY} up -y {CLUSTER}", timeout_s=START_TIMEOUT_S)

    serves(head)
    labels = sorted(
        (one[ISLAND_LABEL], one[NODE_LABEL], gpus) for one, gpus in json.loads(head.run(f"python -c '{NODES}'"))
    )
    assert labels == [("head", "head", 0), *((name, name, GPUS) for name in WORKERS)]
    needs_its_token(head)
    is_scraped(head)
    keeps_its_secrets(head)
    has_what_the_autoscaler_reads(operator, head)
    status = operator.run(f"{RAY} exec {CLUSTER} 'archipelago status'", timeout_s=120)
    assert "2 of 2 replicas run" in status
    reaches_the_endpoint(operator)
    runbooks_commands_work(head)

    operator.run(f"{RAY} exec {CLUSTER} 'archipelago stop'", timeout_s=120)
    operator.run(f"{RAY} down -y {CLUSTER}", timeout_s=120)
    for machine in up.values():
        until(lambda one=machine: not one.processes(), f"{machine.name} is empty", timeout_s=END_TIMEOUT_S, every_s=1)


def serves(head: Machine) -> None:
    """Each worker has a replica, the head none, and a request is answered."""
    until(lambda: "Try it" in head.run("cat serve.log"), "it serves", timeout_s=START_TIMEOUT_S, every_s=2)
    assert islands_in_use(head) == list(WORKERS)
    assert answered(head) == ASKED["max_tokens"]


def islands_in_use(head: Machine) -> list[str]:
    (fleet,) = ask(head, "http://127.0.0.1:8001/v1/fleet")["fleets"]
    return sorted({seat["island"] for replica in fleet["replicas"] for seat in replica["seats"]})


def answered(head: Machine) -> int:
    """How many tokens a request gets."""
    answer = ask(head, "http://127.0.0.1:8000/v1/completions", ASKED)
    return int(answer["usage"]["completion_tokens"])


def needs_its_token(head: Machine) -> None:
    """Who has another token is not let into the cluster."""
    refused = head.run("ray status || true; RAY_AUTH_TOKEN=other ray status 2>&1 || true")
    assert "Active" in refused.partition("Unauth")[0], refused
    assert "Unauth" in refused, refused


def keeps_its_secrets(head: Machine) -> None:
    """From who looks at Ray's dashboard, which needs Ray's token; from its logs, from ours, and from `ps`."""
    ray_token, control_token = (head.run(f"cat {file}").strip() for file in (".ray/auth_token", TOKEN_FILE))
    secrets = (ray_token, control_token, MODEL["engine"]["hf_token"])
    dashboard = "http://127.0.0.1:8265"
    assert head.run(f"curl --silent --output /dev/null --write-out '%{{http_code}}' {dashboard}{SHOWN[0]}") == "401"
    bearer = '-H "Authorization: Bearer $(cat .ray/auth_token)"'
    told = {path: head.run(f"curl --silent --fail {bearer} '{dashboard}{path}'") for path in SHOWN}
    assert "fleet-controller" in told["/logical/actors"]
    told["ps"] = "\n".join(head.processes())
    assert [(where, place) for where, text in told.items() for place, one in enumerate(secrets) if one in text] == []
    words = " ".join(f"-e {one}" for one in secrets)
    assert head.run(f"grep -rlF {words} /tmp/ray/session_latest/logs/ serve.log prometheus.log || true") == ""


def is_scraped(head: Machine) -> None:
    """Prometheus has the request of `serves`, all its targets are up, and it has our alerts."""
    prometheus = "http://127.0.0.1:9090/api/v1"
    query = f"{prometheus}/query?query=archipelago_arrivals_total"
    found = until(lambda: ask(head, query)["data"]["result"], "the request is counted", timeout_s=60, every_s=1)
    assert [series["value"][1] for series in found] == ["1"]
    targets = ask(head, f"{prometheus}/targets")["data"]["activeTargets"]
    health = {(one["labels"]["job"], one["labels"]["instance"]): one["health"] for one in targets}
    assert {job for job, _ in health} == {"archipelago-ingress", "archipelago-control", "ray"}
    assert set(health.values()) == {"up"}, health
    groups = ask(head, f"{prometheus}/rules")["data"]["groups"]
    alerts = {rule["name"]: rule["health"] for group in groups for rule in group["rules"] if rule["type"] == "alerting"}
    assert alerts["ArchipelagoNoReplicaReady"] == "ok", alerts
    firing = ask(head, f"{prometheus}/alerts")["data"]["alerts"]
    assert [one["labels"]["alertname"] for one in firing if one["state"] == "firing"] == []


def has_what_the_autoscaler_reads(operator: Machine, head: Machine) -> None:
    """It finds Prometheus and the control API by itself; so early it says that it has not seen enough."""
    head.run("cat > autoscaler.yaml", given=yaml.safe_dump(AUTOSCALER))
    decided = operator.run(f"{RAY} exec {CLUSTER} 'archipelago autoscale autoscaler.yaml --once'", timeout_s=120)
    assert "tiny-llama: decision 1" in decided


def reaches_the_endpoint(operator: Machine) -> None:
    """By the port that `ray attach` has at the operator's machine."""
    attach = f"(sleep 20; echo exit) | {RAY} attach {CLUSTER} -p 8000 > attach.log 2>&1"
    look = "curl --silent --fail --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:8000/v1/models"
    assert "tiny-llama" in operator.run(f"{attach} & {look}; wait", timeout_s=90)


def runbooks_commands_work(head: Machine) -> None:
    """Those of deployments/runbooks.md that ask Ray, the last of which empties a node."""
    assert "fleet-controller" in head.run("ray list actors --filter name=fleet-controller --limit 10")
    assert "tiny-llama--ingress--0" in head.run("serve status")
    listed = json.loads(head.run("ray list nodes --format json --filter state=ALIVE"))
    (node_id,) = (one["node_id"] for one in listed if one["labels"][NODE_LABEL] == WORKERS[1])
    reason = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'bad GPU' --deadline-remaining-seconds 600"
    head.run(f"ray drain-node --node-id {node_id} {reason}")
    until(lambda: islands_in_use(head) == [WORKERS[0]], "the drained node is empty", timeout_s=120, every_s=1)
    assert answered(head) == ASKED["max_tokens"]
