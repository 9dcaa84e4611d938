"""Writes what an installation consists of, as CycloneDX 1.6 in JSON: `sbom.py cpu` or `sbom.py cuda`.

It is read from deployments/locks, which pin every version that `make serve` installs, and from pyproject.toml; the same
files give the same bytes. The SHA-256 of a package's files (a wheel for each platform) are those that an installation
accepts; torch's CPU build, which is not on PyPI, has none.
"""

import argparse
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "deployments" / "locks"
ENGINES = ("cpu", "cuda")
_PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[a-z0-9.+!]+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})*)")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class Pin(NamedTuple):
    """A version, and the SHA-256 of each file of it."""

    version: str
    sha256s: tuple[str, ...]


class LockError(Exception):
    """A lock has a line that is no pin."""


def pins_of(lock: str) -> Mapping[str, Pin]:
    """By the name of the package. Raises `LockError`."""
    pins: dict[str, Pin] = {}
    for line in re.sub(r" \\\n *", " ", lock).splitlines():
        if line.startswith("#") or not line.strip():
            continue
        match = _PIN.fullmatch(line.strip())
        if match is None:
            raise LockError(f"{line!r} is no pin like name==version; has `make lock` changed its options?")
        pins[match["name"]] = Pin(match["version"], tuple(re.findall("[0-9a-f]{64}", match["hashes"])))
    return pins


def purl(name: str, version: str) -> str:
    """A package of PyPI (https://github.com/package-url/purl-spec)."""
    return f"pkg:pypi/{name}@{quote(version, safe='')}"


def component(name: str, pin: Pin) -> dict[str, Any]:
    """One package. Its files are a `distribution` with all their hashes, as cyclonedx-py writes pip's requirements."""
    ref = purl(name, pin.version)
    hashes = [{"alg": "SHA-256", "content": sha256} for sha256 in pin.sha256s]
    files = {"externalReferences": [{"type": "distribution", "url": ref, "hashes": hashes}]} if hashes else {}
    return {"type": "library", "bom-ref": ref, "name": name, "version": pin.version, "purl": ref} | files


def bom(pins: Mapping[str, Pin], project: Mapping[str, Any], engine: str) -> dict[str, Any]:
    """The document. Only what the project asks for itself is listed as its dependency."""
    own = purl(project["name"], project["version"])
    direct = sorted(set(_iter_names(project, engine)) & pins.keys())
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
        "components": [component(*named) for named in sorted(pins.items())],
        "dependencies": [{"ref": own, "dependsOn": [purl(name, pins[name].version) for name in direct]}],
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
