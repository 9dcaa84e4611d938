"""Values that the chart refuses, before anything is installed."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from rendered_charts import CHART, EXAMPLES, helm, needs_helm, template

from autoscaling.settings.settings import Settings
from deployments.config import Config

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
# Maps whose keys are anybody's choice: vLLM's arguments, labels, names of resources.
FREE = {"engine", "annotations", "labels", "dashboardLabels", "podLabels", "podAnnotations", "nodeSelector"}
FREE |= {"extraResources", "matchLabels", "global"}
OF_THE_CHART = {"cluster", "endpoint.host", "endpoint.api_keys", "endpoint.tls", "endpoint.metrics_host"}
OF_THE_CHART |= {"control.host", "control.api_keys", "control.tls"}
OF_THE_CHARTS_AUTOSCALER = {"control", "directory", "metrics_host", "metrics_port"}


def test_every_object_of_the_schema_is_closed() -> None:
    assert [path for path, part in _iter_objects(SCHEMA) if part.get("additionalProperties") is not False] == []


def _iter_objects(part: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(part, list):
        for each in part:
            yield from _iter_objects(each, path)
    elif isinstance(part, dict):
        is_map = isinstance(part.get("additionalProperties"), dict)
        if part.get("type") == "object" and not is_map and path[-1:] != ("engine",) and path[-1:] != ("global",):
            yield path, part
        for name, below in part.items():
            yield from _iter_objects(below, (*path, name))


@pytest.mark.parametrize("values", [json.dumps(DEFAULTS), *EXAMPLES.values()], ids=["defaults", *EXAMPLES])
def test_a_misspelled_key_of_any_value_is_refused(values: str) -> None:
    judge = jsonschema.Draft7Validator(SCHEMA)
    whole = _over(DEFAULTS, yaml.safe_load(values))
    assert list(judge.iter_errors(whole)) == []
    overlooked = []
    for path in _iter_keys(whole):
        changed = copy.deepcopy(whole)
        holder = changed
        for step in path[:-1]:
            holder = holder[step]
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
        if judge.is_valid(changed):
            overlooked.append(path)
    assert overlooked == []


def _over(below: Any, above: Any) -> Any:
    """As helm lays a values file over the defaults."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _over(below.get(key), value) for key, value in above.items()}


def _iter_keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, below in value.items():
            if not path or path[-1] not in FREE:
                yield (*path, key)
            yield from _iter_keys(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _iter_keys(below, (*path, index))


@pytest.mark.parametrize(
    ("model", "part", "own"),
    [
        (Config, SCHEMA["properties"]["config"], OF_THE_CHART),
        (Settings, SCHEMA["properties"]["autoscaler"]["properties"]["settings"], OF_THE_CHARTS_AUTOSCALER),
    ],
    ids=["archipelago serve", "archipelago autoscale"],
)
def test_the_schema_has_the_fields_that_the_code_takes(model: Any, part: Any, own: set[str]) -> None:
    whole = model.model_json_schema()
    taken, known = set(_iter_fields(whole, whole["$defs"])), set(_iter_fields(part, {}))
    taken = {field for field in taken if not any((field + ".").startswith(f"{each}.") for each in own)}
    assert taken - known == set(), "add these to helm/values.schema.json, or to those that the chart fills in"
    assert known - taken == set(), "these are no fields any more: take them out of helm/values.schema.json"


def _iter_fields(part: dict[str, Any], defs: dict[str, Any], path: str = "") -> Iterator[str]:
    """Fields by their paths, those of the objects in a list as if there were one."""
    for choice in [part, *part.get("anyOf", []), *part.get("allOf", [])]:
        inner = choice.get("items", choice)
        inner = defs[inner["$ref"].rsplit("/", 1)[1]] if "$ref" in inner else inner
        for name, below in inner.get("properties", {}).items():
            yield f"{path}{name}"
            yield from _iter_fields(below, defs, f"{path}{name}.")


@needs_helm
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("{bogus: 1}", "'bogus' not allowed"),
        ("{head: {gpus: 1}}", "'gpus' not allowed"),
        ("{config: {cluster: {kind: simulated}}}", "'cluster' not allowed"),
        ("{config: {endpoint: {host: 127.0.0.1}}}", "'host' not allowed"),
        ("{config: {models: [{source: a/b, shpae: tp2}]}}", "'shpae' not allowed"),
        ("{config: {endpoint: {port: 70000}}}", "maximum"),
        ("{sharedMemory: lots}", "does not match pattern"),
        ("{simulated: {enabled: 'yes'}}", "want boolean"),
    ],
)
def test_helm_itself_refuses_by_the_schema(setting: str, complaint: str) -> None:
    done = template(setting)
    assert done.returncode != 0
    assert complaint in done.stderr


ISLAND = "{name: a, count: 1, nodes: 1, gpusPerNode: 8, cpu: 8, memory: 9Gi"


@needs_helm
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (f"islands: [{ISLAND}}}, {ISLAND}}}]", 'islands: the name "a" is used twice'),
        (f"islands: [{ISLAND}, atomic: true}}]", 'islands: "a" has one node each'),
        ("config: {models: [{source: a/b}, {source: a/c, port: 8000}]}", "two models have one port"),
        ("config: {control: {port: 8000}}", "config.control.port: 8000 is a model's port"),
        ("config: {endpoint: {ingresses: 9}}", "head.cpu: 8 cores are fewer than the 9 ingresses"),
        ("modelStore: {existingClaim: a, hostPath: /b}", "modelStore: give one of"),
        ("autoscaler: {enabled: true}", "autoscaler.settings.models: name the models"),
        ("scheduler: {kind: kueue}", "scheduler.queue: give the LocalQueue"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_sentence(setting: str, complaint: str) -> None:
    done = template(setting)
    assert done.returncode != 0
    assert complaint in done.stderr


@needs_helm
def test_a_name_that_kuberay_would_not_take_is_refused() -> None:
    done = helm("template", "4-demo", str(CHART))
    assert done.returncode != 0
    assert 'the release name "4-demo"' in done.stderr
