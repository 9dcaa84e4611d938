"""The chart, rendered by the real helm: no cluster is needed for that."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm"
EXAMPLES = {path.stem: path.read_text() for path in sorted((CHART / "examples").glob("*.yaml"))}
FETCHED = sorted(path for path in (ROOT / ".tools").glob("helm-*") if path.suffix != ".new")
HELMS = [*map(str, FETCHED), *filter(None, [shutil.which("helm")])]

needs_helm = pytest.mark.skipif(not HELMS, reason="no helm; `.ci/helm.py 3` and `.ci/helm.py 4` fetch it into .tools")
_RANDOM = re.compile(r"ak-[0-9a-f]{12}-\w{43}|[0-9a-f]{64}|auth_token: \w+|\\\"(created_at|id)\\\":\\\"[^\\]*")


def helm(*arguments: str, binary: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm, by default the newest there is, where it finds no cluster."""
    command = [binary or HELMS[-1], *arguments]
    environ = {**os.environ, "KUBECONFIG": "/dev/null"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)


def template(values: str = "", *arguments: str, binary: str | None = None) -> subprocess.CompletedProcess[str]:
    """`helm template` with the text of a values file."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(values)
        file.flush()
        where = ["--namespace", "serving", "--values", file.name]
        return helm("template", "demo", str(CHART), *where, *arguments, binary=binary)


@cache
def rendered(values: str = "", *arguments: str, binary: str | None = None) -> str:
    """What helm prints, which has to be all well."""
    done = template(values, *arguments, binary=binary)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_keys(text: str) -> str:
    """The text without what is random in it."""
    return _RANDOM.sub("RANDOM", text)


def objects(values: str = "", *arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The chart's objects, fresh, by kind and name."""
    found = {}
    for document in yaml.load_all(rendered(values, *arguments), UniqueKeys):
        if document is not None:
            found[document["kind"], document["metadata"]["name"]] = document
    return found


def only(kind: str, values: str = "") -> dict[str, Any]:
    """The only object of a kind."""
    (found,) = (each for (its_kind, _), each in objects(values).items() if its_kind == kind)
    return found


class UniqueKeys(yaml.CSafeLoader):
    """Refuses a key given twice, of which YAML's own loader keeps the last and Kubernetes none."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key is given twice: {sorted(keys)} {node.start_mark}"
        return super().construct_mapping(node, deep)
