"""Every example, as Kubernetes, KubeRay and Prometheus would judge what helm makes of it."""

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_schemas import problems
from measured_data import measured
from rendered_charts import CHART, EXAMPLES, HELMS, helm, needs_helm, objects, rendered, without_keys

pytestmark = needs_helm

# Whose keys are anybody's choice, so a misspelled one is no error.
FREE = {"labels", "annotations", "matchLabels", "nodeSelector", "requests", "limits", "rayStartParams", "data"}
FREE |= {"stringData"}
MAX_NAME = 53  # KubeRay v1.7.0, ray-operator/controllers/ray/utils/validation.go
GATED = {"networkPolicy", "tlsOptions", "historyServerOptions"}  # alpha there, and off
each_example = pytest.mark.parametrize("example", EXAMPLES)


@pytest.mark.parametrize("binary", HELMS, ids=lambda path: Path(path).name)
@each_example
def test_lint(example: str, binary: str) -> None:
    linted = helm("lint", "--strict", str(CHART), "--values", f"{CHART}/examples/{example}.yaml", binary=binary)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.skipif(len(HELMS) < 2, reason="one version of helm only; `.ci/helm.py 3` fetches the other")
@each_example
def test_helm_3_and_4_render_the_same(example: str) -> None:
    first, *others = (without_keys(rendered(EXAMPLES[example], binary=binary)) for binary in HELMS)
    assert others == [first] * len(others)


@each_example
def test_kubernetes_takes_every_field(example: str) -> None:
    crds = measured("../crds")
    wrong = {key: found for key, each in objects(EXAMPLES[example]).items() if (found := list(problems(each, crds)))}
    assert wrong == {}


def test_a_misspelled_key_of_any_object_is_found() -> None:
    crds = measured("../crds")
    overlooked, tried = [], set()
    every = [*objects(EXAMPLES["nvl72"]).items(), *objects(EXAMPLES["cpu-demo"]).items()]
    for (kind, name), document in every:
        for path in _iter_keys(document):
            if (kind, path) in tried:
                continue
            tried.add((kind, path))
            changed = copy.deepcopy(document)
            holder = _at(changed, path[:-1])
            holder[f"{path[-1]}x"] = holder.pop(path[-1])
            if not any(problems(changed, crds)):
                overlooked.append((kind, name, path))
    assert overlooked == []


def _iter_keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all keys; of a list of objects those of the first."""
    if isinstance(value, dict):
        is_free = path and (path[-1] in FREE or (path[-1] == "selector" and "matchLabels" not in value))
        for key, below in value.items():
            if not is_free:
                yield (*path, key)
            yield from _iter_keys(below, (*path, key))
    elif isinstance(value, list) and value:
        yield from _iter_keys(value[0], (*path, 0))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@each_example
def test_kuberay_accepts_the_cluster(example: str) -> None:
    """What only the operator checks, so that no schema tells."""
    for (kind, name), document in objects(EXAMPLES[example]).items():
        assert kind != "RayService", "its serveConfigV2 would be put again after each restart of the operator"
        if kind != "RayCluster":
            continue
        spec = document["spec"]
        assert len(name) <= MAX_NAME
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert not GATED & spec.keys()
        assert spec["authOptions"]["mode"] == "token"
        assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0), "older Ray has no tokens"
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        for group in groups:
            assert "resources" not in group, "they would contradict rayStartParams"
            assert "restartPolicy" not in group["template"]["spec"]
            # The operator's own labels, which its services select by.
            labels = group["template"]["metadata"]["labels"]
            assert not [key for key in labels if key.startswith("ray.io/") or key == "app.kubernetes.io/name"]
        names = [group["groupName"] for group in spec["workerGroupSpecs"]]
        assert len(set(names)) == len(names)
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == group["maxReplicas"], "islands do not grow"
            assert not any(label.startswith("ray.io/") for label in group.get("labels", {})), "Ray reserves them"


@each_example
def test_pods_have_no_right_that_they_do_not_need(example: str) -> None:
    found = objects(EXAMPLES[example])
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & {kind for kind, _ in found}
    pods = list(_iter_pods(found))
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert set(container["securityContext"]["capabilities"].get("add", [])) <= {"IPC_LOCK"}
            assert "memory" in container["resources"]["limits"]


@each_example
def test_what_pods_refer_to_is_there(example: str) -> None:
    """Secrets, claims and ConfigMaps that the chart makes, and mounts of volumes that the pod has."""
    found = objects(EXAMPLES[example])
    named = {name for _, name in found} | {"hugging-face", "models"}  # the two that the user has made
    for pod in _iter_pods(found):
        text = yaml.safe_dump(pod)
        referred = re.findall(r"(?:secretName|claimName|serviceAccountName): (\S+)", text)
        referred += re.findall(r"(?:configMap|secretKeyRef):\n(?: .*\n)*? +name: (\S+)", text)
        assert set(referred) <= named
        for container in pod["containers"]:
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts <= {volume["name"] for volume in pod["volumes"]}


def _iter_pods(found: dict[tuple[str, str], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for (kind, _), document in found.items():
        if kind == "RayCluster":
            spec = document["spec"]
            for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
                yield group["template"]["spec"]
        elif kind == "Deployment":
            yield document["spec"]["template"]["spec"]


@each_example
def test_services_and_policies_select_pods_that_there_are(example: str) -> None:
    found = objects(EXAMPLES[example])
    labels = []
    for (kind, _), document in found.items():
        if kind == "RayCluster":
            groups = [document["spec"]["headGroupSpec"], *document["spec"]["workerGroupSpecs"]]
            labels += [group["template"]["metadata"]["labels"] for group in groups]
        elif kind == "Deployment":
            labels.append(document["spec"]["template"]["metadata"]["labels"])
            assert document["spec"]["selector"]["matchLabels"].items() <= labels[-1].items()
    for (kind, name), document in found.items():
        spec = document.get("spec", {})
        wanted = {
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(kind)
        if wanted:
            assert any(wanted(spec).items() <= these.items() for these in labels), (kind, name)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH; `.ci/prometheus.sh` fetches one")
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    rules = [each for (kind, _), each in objects(EXAMPLES["four-hgx-nodes"]).items() if kind == "PrometheusRule"]
    assert len(rules) == len(list(CHART.glob("rules/*.yaml")))
    for rule in rules:
        file = tmp_path / f"{rule['metadata']['name']}.yaml"
        file.write_text(yaml.safe_dump(rule["spec"]))
        checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_dashboard_is_a_config_map_that_grafana_finds() -> None:
    found = objects(EXAMPLES["four-hgx-nodes"])
    maps = [each for each in found.values() if each["metadata"]["labels"].get("grafana_dashboard") == "1"]
    shipped = {path.name: path.read_text().strip() for path in CHART.glob("dashboards/*.json")}
    assert {name: text.strip() for each in maps for name, text in each["data"].items()} == shipped
