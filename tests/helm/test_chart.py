"""What the chart makes of its values: islands, services, configuration, keys."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered_charts import CHART, EXAMPLES, ROOT, needs_helm, objects, only

from autoscaling.settings.settings import parse_settings
from deployments.access.keys import id_of, is_same, parse_keys
from deployments.check import check
from deployments.cli import parser
from deployments.config import RayCluster, SimulatedCluster, parse_config
from deployments.islands import ISLAND_LABEL

pytestmark = needs_helm
Groups = dict[str, dict[str, Any]]


def worker_groups(islands: str, more: str = "") -> Groups:
    groups = only("RayCluster", f"islands: [{islands}]\n{more}")["spec"]["workerGroupSpecs"]
    return {group["groupName"]: group for group in groups}


def island(fields: str) -> str:
    return "{name: gb, count: 1, nodes: 1, gpusPerNode: 4, cpu: 16, memory: 100Gi" + fields + "}"


def config_of(values: str) -> str:
    text: str = next(each for (_, name), each in objects(values).items() if name == "demo-config")["data"][
        "config.yaml"
    ]
    return text


def test_the_chart_has_the_projects_version_and_ray() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project["version"]
    ray_version = next(each for each in project["dependencies"] if each.startswith("ray")).split("==")[1]
    assert only("RayCluster")["spec"]["rayVersion"] == ray_version
    assert f"rayproject/ray:{ray_version}-" in (ROOT / "Dockerfile").read_text()


def test_islands_of_one_node_share_a_group_and_have_no_label() -> None:
    """Ray's nodes without our label are islands of their own; with one label they would be one island."""
    group = worker_groups(island("").replace("count: 1", "count: 4"))["gb"]
    assert (group["replicas"], group["numOfHosts"], group.get("labels")) == (4, 1, None)


def test_a_single_island_has_its_name() -> None:
    assert worker_groups(island(""))["gb"]["labels"] == {ISLAND_LABEL: "gb"}


@pytest.mark.parametrize(("atomic", "replicas", "hosts"), [("false", 18, 1), ("true", 1, 18)])
def test_each_island_of_many_nodes_is_a_group_with_its_label(atomic: str, replicas: int, hosts: int) -> None:
    racks = worker_groups(
        island(f", atomic: {atomic}").replace("nodes: 1", "nodes: 18").replace("count: 1", "count: 2")
    )
    assert {name: group["labels"][ISLAND_LABEL] for name, group in racks.items()} == {"gb-0": "gb-0", "gb-1": "gb-1"}
    assert {(group["replicas"], group["numOfHosts"]) for group in racks.values()} == {(replicas, hosts)}


def test_the_pods_of_an_island_keep_together_and_those_of_two_apart() -> None:
    racks = worker_groups(island(", topologyKey: nvidia.com/gpu.clique").replace("nodes: 1", "nodes: 2"))
    affinity = racks["gb"]["template"]["spec"]["affinity"]
    (together,) = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (apart,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    own = racks["gb"]["template"]["metadata"]["labels"]
    assert together["topologyKey"] == apart["topologyKey"] == "nvidia.com/gpu.clique"
    assert together["labelSelector"]["matchLabels"].items() <= own.items()
    assert apart["labelSelector"]["matchLabels"].items() <= own.items()
    assert apart["labelSelector"]["matchExpressions"] == [
        {"key": "archipelago.io/island-group", "operator": "NotIn", "values": ["gb"]}
    ]


def test_an_islands_pods_ask_for_what_it_has() -> None:
    more = island(", extraResources: {rdma/ib: 8}, lockMemory: true, tolerations: [{operator: Exists}]")
    group = worker_groups(more)["gb"]
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "100Gi", "nvidia.com/gpu": 4, "rdma/ib": 8}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert group["rayStartParams"] == {"num-cpus": "16", "num-gpus": "4", "object-store-memory": str(2**30)}
    assert pod["tolerations"] == [{"operator": "Exists"}]


def test_the_image_has_what_is_installed_in_it() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages | {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]} <= let_in
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER ray"]


@pytest.mark.parametrize("example", ["cpu-demo", "nvl72"])
def test_the_command_line_takes_what_the_pods_run(example: str) -> None:
    deployments = [each for (kind, _), each in objects(EXAMPLES[example]).items() if kind == "Deployment"]
    commands = [each["spec"]["template"]["spec"]["containers"][0]["command"] for each in deployments]
    ours = [command for command in commands if command[0] == "archipelago"]
    assert ours
    for command in ours:
        assert parser().parse_args(command[1:]).config == f"/etc/archipelago/{command[-1].rpartition('/')[2]}"


@pytest.mark.parametrize("example", EXAMPLES)
def test_archipelago_accepts_its_configuration(example: str) -> None:
    config = parse_config(config_of(EXAMPLES[example]))
    assert isinstance(config.cluster, SimulatedCluster if example == "cpu-demo" else RayCluster)
    assert config.endpoint.host == config.control.host == "0.0.0.0"
    assert config.endpoint.api_keys
    assert config.control.api_keys


@pytest.mark.parametrize("example", EXAMPLES)
def test_nothing_is_wrong_with_its_configuration(example: str, tmp_path: Path) -> None:
    """As `archipelago check` sees it in the head, where the Secrets are mounted."""
    found = objects(EXAMPLES[example])
    for name in ("control", "endpoint"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.json").write_text(found["Secret", f"demo-{name}"]["stringData"]["keys.json"])
    text = config_of(EXAMPLES[example]).replace("/etc/archipelago/keys", str(tmp_path))
    checked = check(parse_config(text), environ={"HOME": str(tmp_path)}, port_is_free=lambda host, port: True)
    assert len(checked.models) == len(checked.config.models)


@pytest.mark.parametrize("example", ["four-hgx-nodes", "nvl72"])
def test_the_autoscaler_accepts_its_settings(example: str) -> None:
    found = objects(EXAMPLES[example])
    settings = parse_settings(found["ConfigMap", "demo-config"]["data"]["autoscaler.yaml"])
    config = parse_config(config_of(EXAMPLES[example]))
    assert {model.model for model in settings.models} <= {model.name for model in config.models}
    assert settings.control
    assert settings.control.url == f"http://demo-control.serving.svc:{config.control.port}"
    deployment = found["Deployment", "demo-autoscaler"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert settings.control.token_env in {entry["name"] for entry in container["env"]}
    assert container["ports"] == [{"name": "metrics", "containerPort": settings.metrics_port}]
    assert settings.directory in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(
    ("first", "control", "own"),
    [
        (8000, 8001, [None]),
        (8000, 8001, [None, None, None]),
        (7999, 8001, [None, None, None, None]),
        (8000, 9000, [None, 8500, None]),
        (8002, 8001, [9002, None]),
    ],
)
def test_the_service_follows_the_models_ports(first: int, control: int, own: list[int | None]) -> None:
    models = [{"source": f"org/m{index}"} | ({"port": port} if port else {}) for index, port in enumerate(own)]
    values = json.dumps({"config": {"models": models, "endpoint": {"port": first}, "control": {"port": control}}})
    ports = parse_config(config_of(values)).ports
    assert tuple(port["port"] for port in objects(values)["Service", "demo"]["spec"]["ports"]) == ports
    open_ports = objects(values)["NetworkPolicy", "demo-clients"]["spec"]["ingress"][0]["ports"]
    assert tuple(each["port"] for each in open_ports) == ports


def test_another_shape_changes_only_the_configuration() -> None:
    """So that an upgrade ends no pod that serves: the launcher tells the controller, which repartitions."""
    before = objects(EXAMPLES["four-hgx-nodes"])
    after = objects(EXAMPLES["four-hgx-nodes"].replace("shape: tp4", "shape: tp8"))
    for each in (before, after):
        for secret in [key for key in each if key[0] == "Secret"]:
            del each[secret]  # these are kept by an upgrade
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == {
        ("ConfigMap", "demo-config"),
        ("Deployment", "demo-launcher"),
    }
    for each in (before, after):
        del each["Deployment", "demo-launcher"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
    assert before["Deployment", "demo-launcher"] == after["Deployment", "demo-launcher"]


def test_the_pods_of_ray_hold_on_to_nothing_that_an_upgrade_changes() -> None:
    spec = only("RayCluster", EXAMPLES["four-hgx-nodes"])["spec"]
    assert spec["upgradeStrategy"] == {"type": "None"}, "KubeRay would end all pods when a template changes"
    text = yaml.safe_dump(spec)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f"archipelago-{chart['version']}" not in text, "the chart's version would change every template"
    assert "checksum/" not in text


def test_generated_keys_open_what_they_are_for() -> None:
    found = objects(EXAMPLES["one-hgx-node"])
    control, endpoint = (found["Secret", f"demo-{name}"]["stringData"] for name in ("control", "endpoint"))
    operate, read = parse_keys(control["keys.json"], "control")
    (use,) = parse_keys(endpoint["keys.json"], "endpoint")
    for key, record, role in [
        (control["operate-key"], operate, "operate"),
        (control["read-key"], read, "read"),
        (endpoint["api-key"], use, "use"),
    ]:
        assert (id_of(key), record.role) == (record.id, role)
        assert is_same(key, record.sha256)


def test_no_pod_of_ray_sees_a_key_of_the_control_api() -> None:
    """Only the hashes: whatever runs in a Ray worker could otherwise change the fleet."""
    found = objects(EXAMPLES["four-hgx-nodes"])
    text = yaml.safe_dump(found["RayCluster", "demo"])
    assert not [name for name in ("operate-key", "read-key", "api-key") if name in text]
    key = found["Secret", "demo-control"]["stringData"]["operate-key"]
    assert not any(key in yaml.safe_dump(each) for (kind, _), each in found.items() if kind != "Secret")


def test_given_secrets_are_used_and_none_is_made() -> None:
    given = "{rayAuth: {existingSecret: a}, endpointKeys: {existingSecret: b}, controlKeys: {existingSecret: c}}"
    found = objects(given)
    assert not any(kind == "Secret" for kind, _ in found)
    pod = found["RayCluster", "demo"]["spec"]["headGroupSpec"]["template"]["spec"]
    named = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert named == {"b", "c"}
    assert found["RayCluster", "demo"]["spec"]["authOptions"]["secretName"] == "a"


@pytest.mark.parametrize(
    ("store", "volume"),
    [
        ("{existingClaim: c}", {"persistentVolumeClaim": {"claimName": "c"}}),
        ("{hostPath: /srv}", {"hostPath": {"path": "/srv", "type": "Directory"}}),
        ("{create: {size: 1Ti}}", {"persistentVolumeClaim": {"claimName": "demo-models"}}),
        ("{}", {"emptyDir": {}}),
    ],
)
def test_every_pod_of_ray_has_the_model_store_and_the_compile_cache(store: str, volume: dict[str, Any]) -> None:
    spec = only("RayCluster", f"modelStore: {store}")["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert {"name": "models", **volume} in pod["volumes"]
        (container,) = pod["containers"]
        assert {"name": "models", "mountPath": "/models"} in container["volumeMounts"]
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        assert env["HF_HOME"] == "/models"
        assert env["VLLM_CACHE_ROOT"].startswith("/models/")


@pytest.mark.parametrize(
    ("scheduler", "labels"),
    [
        ("{kind: kueue, queue: q}", {"kueue.x-k8s.io/queue-name": "q"}),
        ("{kind: volcano, queue: q}", {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": "q"}),
        ("{kind: default}", {}),
    ],
)
def test_the_cluster_goes_to_the_queue(scheduler: str, labels: dict[str, str]) -> None:
    found = only("RayCluster", f"scheduler: {scheduler}")["metadata"]["labels"]
    others = ("app.kubernetes.io/", "helm.sh/")
    assert {key: value for key, value in found.items() if not key.startswith(others)} == labels


def test_an_eviction_leaves_all_nodes_but_those_allowed() -> None:
    """A number of pods, since Kubernetes takes no share of those that a RayCluster wants."""
    budget = objects(EXAMPLES["nvl72"])["PodDisruptionBudget", "demo-islands"]["spec"]
    assert budget["minAvailable"] == 2 * 18 + 2 - 1
    assert "maxUnavailable" not in budget


@pytest.mark.parametrize(
    ("given", "begins"),
    [
        ("", "deployments/runbooks.md#"),
        ("runbooks: 'https://wiki.test/runbooks?v=2'", "https://wiki.test/runbooks?v=2#"),
    ],
)
def test_alerts_lead_to_where_the_runbooks_are_read(given: str, begins: str) -> None:
    found = objects("{monitoring: {enabled: true, " + given + "}}")
    rules = [each for (kind, _), each in found.items() if kind == "PrometheusRule"]
    alerts = [rule for each in rules for group in each["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    urls = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in alerts}
    assert urls == {alert: begins + alert.lower() for alert in urls}
    assert len(urls) > 20


def test_prometheus_finds_the_ingresses_at_the_control_api() -> None:
    found = objects(EXAMPLES["four-hgx-nodes"])
    scraped = found["ScrapeConfig", "demo-ingress"]["spec"]
    (discovery,) = scraped["httpSDConfigs"]
    assert discovery["url"] == "http://demo-control.serving.svc:8001/v1/metrics-targets"
    credentials = {"name": "demo-control", "key": "read-key"}
    assert discovery["authorization"] == {"type": "Bearer", "credentials": credentials}
    assert scraped["honorLabels"] is True
    (endpoint,) = found["ServiceMonitor", "demo-control"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == credentials
