"""What an API server would refuse or silently drop of a manifest, found without one.

Kubernetes drops fields that it does not know. Here each is an error: a structural schema of a CRD is closed where the
server would prune. Required fields with a default are not required, since the server fills defaults in before it looks.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

KUBERNETES = "1.33"
_META = {"type": "object", "required": ["name"], "properties": {}, "additionalProperties": False}
_META["properties"] = {
    "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
    "labels": {"additionalProperties": {"type": "string", "pattern": r"^(([A-Za-z0-9][-\w.]{0,61})?[A-Za-z0-9])?$"}},
    "annotations": {"additionalProperties": {"type": "string"}},
}
_KEY = {"type": "object", "properties": {"name": {"type": "string"}, "key": {"type": "string"}}}
_AUTHORIZATION = {"type": "object", "properties": {"type": {"enum": ["Bearer"]}, "credentials": _KEY}}
_DISCOVERY = {"url": {"type": "string"}, "refreshInterval": {"type": "string"}, "authorization": _AUTHORIZATION}
# prometheus-operator 0.93, only the fields that the chart uses.
_SCRAPE_CONFIG = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "jobName": {"type": "string"},
                "honorLabels": {"type": "boolean"},
                "scrapeInterval": {"type": "string"},
                "httpSDConfigs": {"type": "array", "items": {"type": "object", "properties": _DISCOVERY}},
            },
        }
    },
}


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A structural schema in which what the server would drop is an error."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = dict(schema)
    keeps = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    fields = schema.get("properties", {})
    made["properties"] = {name: closed(field) for name, field in fields.items()}
    made["required"] = [name for name in schema.get("required", []) if "default" not in fields.get(name, {})]
    others = schema.get("additionalProperties")
    if isinstance(others, dict):
        made["additionalProperties"] = closed(others)
    elif schema.get("type") == "object" and not keeps:
        made["additionalProperties"] = False
    if "items" in schema:
        made["items"] = closed(schema["items"])
    return made


@cache
def custom_kinds(folder: Path) -> dict[tuple[str, str], jsonschema.Draft4Validator]:
    """A validator for each kind that the CRDs of a folder define, by API version and kind."""
    kinds = {("monitoring.coreos.com/v1alpha1", "ScrapeConfig"): _SCRAPE_CONFIG}
    for path in folder.glob("*.yaml"):
        spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            kinds[key] = version["schema"]["openAPIV3Schema"]
    return {key: jsonschema.Draft4Validator(_with_metadata(closed(schema))) for key, schema in kinds.items()}


def _with_metadata(schema: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "string"}
    fields = schema["properties"] | {"apiVersion": text, "kind": text, "metadata": _META}
    return schema | {"properties": fields, "required": ["apiVersion", "kind", "metadata", "spec"]}


def problems(document: Mapping[str, Any], crds: Path) -> Iterator[str]:
    """What is wrong with a manifest. Skips the test where the schemas of Kubernetes are not installed."""
    key = document.get("apiVersion", ""), document.get("kind", "")
    custom = custom_kinds(crds).get(key)
    if custom is not None:
        for error in custom.iter_errors(document):
            yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        return
    kubernetes = pytest.importorskip("kubernetes_validate")
    try:
        kubernetes.validate(document, KUBERNETES, strict=True)
    except kubernetes.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message[:200]}"
    except (kubernetes.SchemaNotFoundError, KeyError) as error:
        yield f"no such kind: {key} ({error})"
