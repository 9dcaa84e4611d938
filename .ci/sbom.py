"""Writes what an installation consists of, as CycloneDX 1.6 in JSON: `sbom.py cpu` or `sbom.py cuda`.

It is read from deployments/locks, which pin every version that `make serve` installs, and from pyproject.toml; the same
files give the same bytes. The locks have no hashes (one text installs from any index), so neither has this.
"""

import argparse
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deployments" / "locks"
ENGINES = ("cpu", "cuda")
_PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[a-z0-9.+!]+)")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class LockError(Exception):
    """A lock has a line that is no pin."""


def pins_of(lock: str) -> Mapping[str, str]:
    """Name -> version. Raises `LockError`."""
    pins: dict[str, str] = {}
    for line in lock.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        match = _PIN.fullmatch(line.strip())
        if match is None:
            raise LockError(f"{line!r} is no pin like name==version; has `make lock` changed its options?")
        pins[match["name"]] = match["version"]
    return pins


def purl(name: str, version: str) -> str:
    """A package of PyPI (https://github.com/package-url/purl-spec)."""
    return f"pkg:pypi/{name}@{quote(version, safe='')}"


def bom(pins: Mapping[str, str], project: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """The document. Only what the project asks for itself is listed as its dependency."""
    own = purl(project["name"], project["version"])
    direct = sorted(set(_iter_names(project, engine)) & pins.keys())
    parts = [
        {"type": "library", "bom-ref": purl(*pin), "name": pin[0], "version": pin[1], "purl": purl(*pin)}
        for pin in sorted(pins.items())
    ]
    content = json.dumps([own, engine, sorted(pins.items())])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "purl": own,
                "licenses": [{"license": {"id": project["license"]}}],
            },
            "properties": [{"name": "archipelago:engine", "value": engine}],
        },
        "components": parts,
        "dependencies": [{"ref": own, "dependsOn": [purl(name, pins[name]) for name in direct]}],
    }


def _iter_names(project: Mapping[str, Any], engine: str) -> Iterator[str]:
    """Canonical names (PEP 503) of what the project asks for, with this engine."""
    for requirement in [*project["dependencies"], *project["optional-dependencies"][engine]]:
        match = _NAME.match(requirement)
        assert match is not None
        yield re.sub(r"[-_.]+", "-", match[0]).lower()


def main() -> int:
    """Print the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    engine = parser.parse_args().engine
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    try:
        document = bom(pins_of((LOCKS / f"{engine}.txt").read_text()), project, engine)
    except LockError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
