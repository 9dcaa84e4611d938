"""What people give on the command line, read into the planner's values. Everything wrong is told by name here."""

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from placement.calibration import links
from placement.calibration.accuracy import AccuracyError
from placement.calibration.rows import RowError
from placement.clusters.cluster_reading import read_cluster
from placement.clusters.hardware import Cluster, ClusterError
from placement.clusters.terrain import AS_BUILT
from placement.collectives import Calibration, CollectiveError
from placement.cost import constants, residuals
from placement.cost.constants import ConstantsError
from placement.fields import FieldError
from placement.models import catalogue
from placement.models.model import ModelConfigError, ModelSpec
from placement.models.precision import with_precision
from placement.quantities import QuantityError, fraction, percentile, rate_per_s, seconds, tokens
from placement.shape import Shape, ShapeError
from placement.workload import Lengths, Slo, Workload
from placement.yaml_reading import YamlError, read_yaml

FindConfig = Callable[[str], Mapping[str, Any] | None]  # may raise HubError
_CLUSTER_FILES = (".yaml", ".yml", ".json")
_CALIBRATED = ("constants.json", "residuals.json", "links.json")
_OPTIONS = {
    "requests_per_s": "--rate",
    "concurrency": "--concurrency",
    "prefix_hit_rate": "--prefix-hits",
    "spread": "--spread",
    "ttft_s": "--ttft, in seconds,",
    "tpot_s": "--tpot, in seconds,",
    "percentile": "--percentile",
}
KV_BYTES = {"auto": 2.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0}


class HubError(Exception):
    """The hub did not give a config.json. The message says why."""


class InputError(ValueError):
    """An argument or a file that cannot be used. The message names it, its value and what is accepted."""


ERRORS = (
    AccuracyError,
    ClusterError,
    CollectiveError,
    ConstantsError,
    FieldError,
    InputError,
    ModelConfigError,
    QuantityError,
    RowError,
    ShapeError,
)


def model(name: str, precision: str | None, find_config: FindConfig) -> ModelSpec:
    """The model called `name`: a file, a directory with a `config.json`, or a hub id."""
    path = _config_file(name)
    quantised = path and path.with_name("hf_quant_config.json")
    config = read_json(path) if path else catalogue.config(name) or _found(name, find_config)
    spec = ModelSpec.from_hf_config(
        config, name=name, hf_quant_config=read_json(quantised) if quantised and quantised.exists() else None
    )
    return with_precision(spec, precision) if precision else spec


def _found(name: str, find_config: FindConfig) -> Mapping[str, Any]:
    why = "no hub id"
    try:
        if (config := find_config(name)) is not None:
            return config
    except HubError as error:
        why = f"the hub did not give it ({error})"
    if _is_directory(name):
        raise InputError(
            f"model is {name!r}; it is a directory without a config.json. Give the path of its config.json."
        )
    close = catalogue.closest(name[:200])
    hint = f"Did you mean {close}? Or give" if close else "Give"
    raise InputError(
        f"model is {name[:200]!r}; it is no file, no directory with a config.json, no model known offline, and {why}. "
        f"{hint} the path of its config.json."
    )


def _is_directory(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # too long for a path
        return False


def _config_file(name: str) -> Path | None:
    """The `config.json` that `name` means as a path, None when it is none."""
    path = Path(name)
    try:
        return next((file for file in (path, path / "config.json") if file.is_file()), None)
    except OSError:  # too long for a path
        return None


def cluster(text: str, *, field: str = "--cluster") -> Cluster:
    """A preset such as '4x dgx-h100', or the path of a YAML or JSON file that describes one; `field` is its name."""
    path = Path(text)
    is_file = path.suffix in _CLUSTER_FILES
    try:
        return read_cluster(read_yaml(path.read_text(encoding="utf-8")) if is_file else text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{field}: {path} cannot be read: {_why(error)}.") from error
    except (ClusterError, YamlError) as error:
        told = str(error) if str(error).endswith((".", "?")) else f"{error}."
        if is_file:
            raise InputError(f"{field}: {path}: {told}") from error
        file = (
            f" The name of a file ends in {', '.join(_CLUSTER_FILES)}."
            if set("./") & set(text) or _is_directory(text)
            else ""
        )
        raise InputError(f"{field}: {told.removeprefix('cluster: ')}{file}") from error


def shape(text: str, *, field: str) -> Shape:
    """Degrees such as tp4 or tp2pp2; `field` is their name."""
    try:
        return Shape.parse(text)
    except ShapeError as error:
        raise InputError(f"{field}: {error}") from error


def workload(arguments: argparse.Namespace) -> Workload:
    """Lengths, rate or clients, and prefix hits."""
    rate = getattr(arguments, "rate", None)
    with named(_OPTIONS):
        return Workload(
            input_tokens=_lengths(arguments.input, arguments.spread, "--input"),
            output_tokens=_lengths(arguments.output, arguments.spread, "--output"),
            requests_per_s=None if rate is None else rate_per_s(rate, field="--rate"),
            concurrency=getattr(arguments, "concurrency", None),
            prefix_hit_rate=fraction(arguments.prefix_hits, field="--prefix-hits"),
        )


def _lengths(text: str, spread: float, option: str) -> Lengths:
    with named({"mean_tokens": option}):
        return Lengths(mean_tokens=tokens(text, field=option), spread=spread)


@contextmanager
def named(options: Mapping[str, str]) -> Iterator[None]:
    """Whoever gave options is told of those, not of the fields that they fill."""
    try:
        yield
    except FieldError as error:
        raise error.renamed(options) from error


def slo(arguments: argparse.Namespace) -> Slo:
    """The slowest acceptable times and the share of requests that must keep them."""
    with named(_OPTIONS):
        return Slo(
            ttft_s=None if arguments.ttft is None else seconds(arguments.ttft, field="--ttft"),
            tpot_s=None if arguments.tpot is None else seconds(arguments.tpot, field="--tpot"),
            percentile=percentile(arguments.percentile, field="--percentile"),
        )


def own_sources(directory: Path | None) -> tuple[str, ...]:
    """What a plan says of the files in a directory that `calibrate --out` wrote, as one of its sources."""
    found = [name for name in _CALIBRATED if directory and (directory / name).exists()]
    return (f"your calibration {directory}, instead of what is above: {', '.join(found)}",) if found else ()


class Calibrated(TypedDict):
    """All that predictions take from a calibration, by the names of their parameters."""

    constants: constants.Constants
    residuals: residuals.Residuals
    links: Calibration


def calibrated(directory: Path | None) -> Calibrated:
    """What is in a directory that `calibrate --out` wrote, and for what is not, that which comes with the planner."""
    return Calibrated(constants=constants_in(directory), residuals=residuals_in(directory), links=links_in(directory))


def constants_in(directory: Path | None) -> constants.Constants:
    """The fitted constants in a directory that `calibrate --out` wrote, else those shipped."""
    document = _calibrated(directory, "constants.json")
    return constants.shipped() if document is None else constants.read(document)


def links_in(directory: Path | None) -> Calibration:
    """The factors of the cluster's own links in such a directory, else none."""
    document = _calibrated(directory, "links.json")
    return AS_BUILT if document is None else links.read(document)


def residuals_in(directory: Path | None) -> residuals.Residuals:
    """The corrections in such a directory, else those shipped."""
    document = _calibrated(directory, "residuals.json")
    if document is None:
        return residuals.shipped()
    try:
        return residuals.read(document)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{directory}/residuals.json is not what `archipelago calibrate` writes; give its file unchanged."
        ) from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV with a header, at least one."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {_why(error)}.") from error
    if not rows:
        raise InputError(f"{path} holds no rows; give a header and at least one row.")
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {_why(error)}.") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds {type(document).__name__}, not a JSON object.")
    return document


def _why(error: Exception) -> str:
    """Without the path and the number, where the system says why: the message around it names the path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _calibrated(directory: Path | None, name: str) -> dict[str, Any] | None:
    """The file `name` of what `archipelago calibrate --out` wrote, None where it wrote only others."""
    if directory is None:
        return None
    if not any((directory / written).exists() for written in _CALIBRATED):
        raise InputError(f"--calibration: {directory} has none of {', '.join(_CALIBRATED)}; give what calibrate wrote.")
    path = directory / name
    return read_json(path) if path.exists() else None
