"""The fitted constants of the cost model, by name and key, from `constants.json`.

A constant is a positive number with a unit, a meaning and a source. Its keys are an engine ("vllm"), a GPU kind, the
arithmetic of a matrix ("fp8"), or several joined by "|"; a key that is not listed takes the constant's `default`.
Where a factor of the model is a product of constants (that of the engine, times that of the engine on one GPU), each
is looked up by itself. `calibration` fits the logarithms of all values at once, each held near its prior.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, str]  # name of a constant and key


class ConstantsError(ValueError):
    """A file of constants that the model cannot use. The message names the constant, the key and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """`values` by key; `default` for any other key, and the prior of the fit, whose logarithm has `spread`."""

    unit: str
    meaning: str
    source: str
    default: float
    spread: float
    values: Mapping[str, float] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """All constants, with the GEMM curves measured by GPU kind, engine and arithmetic."""

    constants: Mapping[str, Constant] = field(hash=False)
    gemm: Mapping[str, tuple[float, float, float, float]] = field(hash=False)
    gemm_source: str

    def value(self, name: str, key: str) -> float:
        """The value for `key`, or the default."""
        constant = self.constants[name]
        return constant.values.get(key, constant.default)

    def gemm_curve(self, gpu: str, engine: str, math: str) -> tuple[float, float, float, float]:
        """Launch time (us), shares of peak FLOP/s and of memory bandwidth, and sharpness of the corner between them.

        A GPU kind that was never measured gets the engine's usual curve for that arithmetic.
        """
        curve = self.gemm.get(f"{gpu}|{engine}|{math}") or self.gemm.get(f"{engine}|{math}")
        return curve or self.gemm[f"vllm|{math}"]

    def is_measured(self, gpu: str, engine: str) -> bool:
        """Whether the engine was fitted on this kind of GPU; otherwise the constants are those of other kinds."""
        return f"{engine}|{gpu}" in self.constants["overhead_of_gpu"].values

    def with_values(self, values: Mapping[Key, float]) -> "Constants":
        """The same with other values for some keys."""
        changed = {name: dict(item.values) for name, item in self.constants.items()}
        for (name, key), value in values.items():
            changed[name][key] = value
        constants = {name: replace(item, values=changed[name]) for name, item in self.constants.items()}
        return replace(self, constants=constants)


def priors(constants: Constants) -> Constants:
    """The constants before any measurement: every key at its default."""
    return constants.with_values(
        {(name, key): item.default for name, item in constants.constants.items() for key in item.values}
    )


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where each factor of each case is in a vector of logarithms; slot 0 holds 0, for factors that do not apply."""

    keys: tuple[Key, ...]
    slots: Mapping[str, NDArray[np.intp]]

    @classmethod
    def of(cls, wanted: Mapping[str, Iterable[tuple[Key, ...]]]) -> "Lookup":
        """`wanted` has, for each factor, the constants of each case whose product it is."""
        numbers: dict[Key, int] = {}
        slots: dict[str, NDArray[np.intp]] = {}
        for factor, cases in wanted.items():
            rows = [[numbers.setdefault(key, len(numbers) + 1) for key in keys] for keys in cases]
            width = max((len(row) for row in rows), default=1)
            slots[factor] = np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.intp)
        return cls(tuple(numbers), slots)

    def logarithms(self, constants: Constants) -> NDArray[np.float64]:
        """The vector that belongs to `constants`."""
        return np.log([1.0, *(constants.value(name, key) for name, key in self.keys)])

    def factors(self, logarithms: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Each factor of each case."""
        return {name: np.exp(logarithms[slots].sum(axis=1)) for name, slots in self.slots.items()}


@cache
def shipped() -> Constants:
    """The constants that come with this package."""
    return read(json.loads((files("placement.cost") / "constants.json").read_text(encoding="utf-8")))


def read(document: Mapping[str, Any]) -> Constants:
    """The constants of a JSON document as `write` makes it. Raises `ConstantsError`."""
    try:
        constants = {
            name: Constant(
                unit=str(item["unit"]),
                meaning=str(item["meaning"]),
                source=str(item["source"]),
                default=_positive(name, "default", item["default"]),
                spread=_positive(name, "spread", item["spread"]),
                values={key: _positive(name, key, value) for key, value in item["values"].items()},
            )
            for name, item in document["constants"].items()
        }
        gemm = {key: _curve(key, values) for key, values in document["gemm"]["curves"].items()}
        return Constants(constants=constants, gemm=gemm, gemm_source=str(document["gemm"]["source"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConstantsError(
            f"Constants: {error} is missing or is not what `archipelago calibrate` writes; give its file unchanged."
        ) from error


def write(constants: Constants) -> dict[str, Any]:
    """The JSON document that `read` takes."""
    return {
        "constants": {
            name: {
                "unit": item.unit,
                "meaning": item.meaning,
                "source": item.source,
                "default": item.default,
                "spread": item.spread,
                "values": {key: float(f"{value:.4g}") for key, value in sorted(item.values.items())},
            }
            for name, item in constants.constants.items()
        },
        "gemm": {
            "source": constants.gemm_source,
            "curves": {key: list(curve) for key, curve in constants.gemm.items()},
        },
    }


def _curve(key: str, values: Any) -> tuple[float, float, float, float]:
    launch_us, flops, bandwidth, sharpness = (float(value) for value in values)
    if launch_us < 0 or min(flops, bandwidth, sharpness) <= 0:
        raise ConstantsError(
            f"Constants: gemm curve {key} is {values}; the first must be at least 0, the others above."
        )
    return launch_us, flops, bandwidth, sharpness


def _positive(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConstantsError(f"Constants: {name}[{key}] is {value!r}; it must be a number above 0.")
    return float(value)
