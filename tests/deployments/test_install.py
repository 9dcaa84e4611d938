"""What the installer decides; that it installs is shown by every run of these tests."""

import re
import sys
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


def test_locked_version() -> None:
    lock = "# made by uv\nuvicorn==0.54.0\nuv==0.13.9\n"
    assert install.locked_version(lock, "uv") == "0.13.9"
    with pytest.raises(InstallError, match="does not pin pip; run: make lock"):
        install.locked_version(lock, "pip")


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
