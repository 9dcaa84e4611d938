"""What an upgrade finds in the cluster and keeps, and what a person is told, against a server that answers like one."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered_charts import CHART, EXAMPLES, HELMS, helm, needs_helm

pytestmark = needs_helm

KINDS = {
    "v1": ["Secret", "ServiceAccount", "ConfigMap", "Service", "PersistentVolumeClaim"],
    "apps/v1": ["Deployment"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    "ray.io/v1": ["RayCluster"],
    "monitoring.coreos.com/v1": ["ServiceMonitor", "PodMonitor", "PrometheusRule"],
    "monitoring.coreos.com/v1alpha1": ["ScrapeConfig"],
}
VERBS = ["get", "list", "create", "patch", "delete"]


def plural(kind: str) -> str:
    """As in paths."""
    return re.sub("y$", "ie", kind.lower()) + "s"


def discovery() -> dict[str, Any]:
    """What the server says that it has, by path."""
    answers: dict[str, Any] = {"/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}}
    answers["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
    groups: dict[str, list[dict[str, str]]] = {}
    for version, kinds in KINDS.items():
        group, _, number = version.rpartition("/")
        if group:
            groups.setdefault(group, []).append({"groupVersion": version, "version": number})
        resources = [
            {"name": plural(kind), "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": VERBS}
            for kind in kinds
        ]
        path = f"/apis/{version}" if group else f"/api/{version}"
        answers[path] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    listed = [{"name": name, "versions": all_, "preferredVersion": all_[0]} for name, all_ in groups.items()]
    return answers | {"/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}}


STORED = {name: base64.b64encode(f"stored {name}".encode()).decode() for name in ("ray", "endpoint", "control")}
DISCOVERY = discovery()
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


class _Api(BaseHTTPRequestHandler):
    """Discovery, and the Secrets of a release."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer = DISCOVERY.get(path)
        name = path.removeprefix("/api/v1/namespaces/serving/secrets/demo-")
        if name in STORED:
            meta = {"name": f"demo-{name}", "namespace": "serving"}
            answer = {"kind": "Secret", "apiVersion": "v1", "metadata": meta, "data": {"kept": STORED[name]}}
        body = json.dumps(answer or NOT_FOUND).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("binary", HELMS, ids=lambda path: Path(path).name)
def test_an_upgrade_keeps_the_keys_that_are_there(api: str, binary: str) -> None:
    where = ["--namespace", "serving", "--kube-apiserver", api, "--disable-openapi-validation"]
    done = helm("template", "demo", str(CHART), *where, "--is-upgrade", "--dry-run=server", binary=binary)
    assert done.returncode == 0, done.stderr
    secrets = [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] == "Secret"]
    assert {each["metadata"]["name"]: each["data"] for each in secrets} == {
        f"demo-{name}": {"kept": value} for name, value in STORED.items()
    }
    assert not any("stringData" in each for each in secrets), "it would overwrite"


@pytest.mark.parametrize(("example", "workload"), [("cpu-demo", "demo"), ("four-hgx-nodes", "demo-launcher")])
def test_the_notes_tell_the_next_command(api: str, example: str, workload: str) -> None:
    where = ["--namespace", "serving", "--kube-apiserver", api, "--disable-openapi-validation", "--dry-run=client"]
    where += ["--set", "config.control.port=9001"]
    done = helm("install", "demo", str(CHART), "--values", f"{CHART}/examples/{example}.yaml", *where)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert f"kubectl rollout status -n serving deployment/{workload} " in notes
    assert "svc/demo 8000" in notes
    assert "secret -n serving demo-endpoint" in notes
    assert f"kubectl exec -n serving deployment/{workload} -- archipelago fleet" in notes
    assert "port-forward -n serving svc/demo-control 9001 &" in notes
    assert "http://127.0.0.1:9001/fleet" in notes
    assert ("archipelago decisions" in notes) == ("autoscaler:" in EXAMPLES[example])
