"""The chart, rendered by the real helm: no cluster is needed for that."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import RayCluster, parse_config
from deployments.islands import ISLAND_LABEL

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
FETCHED = ROOT / ".tools" / "helm"
HELM = shutil.which("helm") or (str(FETCHED) if FETCHED.exists() else None)

needs_helm = pytest.mark.skipif(HELM is None, reason="no helm on PATH; `make check` fetches one into .tools")

RACK = """
islands:
  - {name: rack-a, nodes: 18, gpusPerNode: 4, cpu: "16", memory: 100Gi, nodeSelector: {rack: a}}
  - {name: pair-b, nodes: 1, gpusPerNode: 2, cpu: "8", memory: 64Gi, tolerations: [{operator: Exists}]}
modelCache: {claim: models}
huggingFaceSecret: hugging-face
config:
  models: [{source: Qwen/Qwen3-8B, shape: tp4pp2, engine: {max_model_len: 8192}}]
  endpoint: {host: 0.0.0.0, port: 9000}
"""


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HELM), *arguments], capture_output=True, text=True, timeout=60)


def render(tmp_path: Path, values: str = "") -> dict[str, Any]:
    """The chart's objects by kind."""
    (tmp_path / "values.yaml").write_text(values)
    rendered = helm("template", "demo", str(CHART), "--values", str(tmp_path / "values.yaml"))
    assert rendered.returncode == 0, rendered.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(rendered.stdout)}


@needs_helm
def test_lint() -> None:
    linted = helm("lint", "--strict", str(CHART))
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_chart_has_the_projects_version_and_ray() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project["version"]
    ray_version = next(each for each in project["dependencies"] if each.startswith("ray")).split("==")[1]
    assert f"rayVersion: {ray_version} " in (CHART / "templates" / "raycluster.yaml").read_text()
    assert f"rayproject/ray:{ray_version}-" in (ROOT / "Dockerfile").read_text()


@needs_helm
def test_every_island_is_a_worker_group_with_its_label(tmp_path: Path) -> None:
    groups = render(tmp_path, RACK)["RayCluster"]["spec"]["workerGroupSpecs"]
    assert [(group["groupName"], group["replicas"], group["labels"]) for group in groups] == [
        ("rack-a", 18, {ISLAND_LABEL: "rack-a"}),
        ("pair-b", 1, {ISLAND_LABEL: "pair-b"}),
    ]
    for group, gpus in zip(groups, (4, 2), strict=True):
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"], "islands do not grow"
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert groups[0]["template"]["spec"]["nodeSelector"] == {"rack": "a"}
    assert groups[1]["template"]["spec"]["tolerations"] == [{"operator": "Exists"}]


@needs_helm
@pytest.mark.parametrize("values", ["", RACK], ids=["default-values", "other-values"])
def test_the_head_can_read_a_configuration_that_archipelago_accepts(tmp_path: Path, values: str) -> None:
    objects = render(tmp_path, values)
    config = parse_config(objects["ConfigMap"]["data"]["config.yaml"])
    assert config.cluster == RayCluster(address="auto")
    head = objects["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]
    (container,) = head["containers"]
    assert {"name": "serve", "containerPort": config.endpoint.port} in container["ports"]
    mounted = next(mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/etc/archipelago")
    volume = next(volume for volume in head["volumes"] if volume["name"] == mounted)
    assert volume["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]


@needs_helm
def test_every_pod_gets_the_model_cache_and_the_token(tmp_path: Path) -> None:
    spec = render(tmp_path, RACK)["RayCluster"]["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert {"name": "models", "persistentVolumeClaim": {"claimName": "models"}} in pod["volumes"]
        token = next(entry for entry in pod["containers"][0]["env"] if entry["name"] == "HF_TOKEN")
        assert token["valueFrom"]["secretKeyRef"] == {"name": "hugging-face", "key": "token"}


@needs_helm
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("bogus=1", "'bogus' not allowed"),
        ("head.gpus=1", "'gpus' not allowed"),
        ("config.cluster.kind=simulated", "'cluster' not allowed"),
        ("config.endpoint.port=70000", "maximum"),
        ("sharedMemory=lots", "does not match pattern"),
    ],
)
def test_an_unknown_or_impossible_value_is_refused(setting: str, complaint: str) -> None:
    rendered = helm("template", "demo", str(CHART), "--set", setting)
    assert rendered.returncode != 0
    assert complaint in rendered.stderr


@needs_helm
def test_two_islands_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(RACK.replace("pair-b", "rack-a"))
    rendered = helm("template", "demo", str(CHART), "--values", str(tmp_path / "values.yaml"))
    assert rendered.returncode != 0
    assert 'the name "rack-a" is used twice' in rendered.stderr
