"""What measured points know that the formulas do not: a correction that fades with distance from them.

Settings that nobody recorded (an engine's version, a kernel it chose, speculative decoding) make whole curves faster or
slower than the formulas say. A Gaussian process over the logarithm of measured / predicted learns that: two points are
alike as far as they share engine, GPU, model and precision, and are near each other in load, lengths and GPUs. Where
nothing measured is alike the correction is 1. Points that fit nothing around them are weighed down (Student's t).
Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from placement.cost.step import Situation
from placement.cost.work import Array
from placement.models.model import ModelSpec
from placement.shape import Shape

Target = Literal["tpot", "ttft"]

TARGETS: tuple[Target, ...] = get_args(Target)
LABELS = ("engine", "gpu", "family", "precision", "version", "client", "kind")
_RELEASE = "release"  # follows from the version
_ROUNDS = 4  # of reweighting points that fit nothing
_OUTLIER = 0.15  # a residual (log) this far from its neighbours has half the weight
_LEAST_WEIGHT = 0.02
_CLIP: Mapping[Target, float] = {
    "tpot": 1.0,
    "ttft": 1.5,
}  # no correction learns from a point further off than e to this


class Component(NamedTuple):
    """Points that share all of `same` vary together by `variance`, of which `everywhere` whatever their distance."""

    same: tuple[str, ...]
    variance: float
    everywhere: float


# Found by cross-validation on public serving points; `_NOISE` is the variance of a point.
_SCALE: Mapping[Target, float] = {"tpot": 1.0, "ttft": 2.0}
_NOISE: Mapping[Target, float] = {"tpot": 0.004, "ttft": 0.008}
KERNEL: Mapping[Target, tuple[Component, ...]] = {
    target: (
        Component(("engine",), scale * 0.01, 0.0),
        Component(("engine", "gpu"), scale * 0.01, 0.5),
        Component(("family",), scale * 0.01, 0.0),
        Component(("family", "engine"), scale * 0.02, 0.3),
        Component(("engine", "precision"), scale * 0.005, 0.0),
        Component(("family", "gpu"), scale * 0.005, 0.0),
        Component(("family", "engine", "gpu", "precision"), scale * 0.02, 0.4),
        Component(("engine", "version"), scale * 0.01, 0.5),
        Component(("engine", "client"), scale * 0.01, 0.0),
        Component(("family", "engine", "version", "precision"), scale * 0.02, 0.5),
        Component(("family", "engine", "release", "precision"), scale * 0.04, 0.5),
    )
    for target, scale in _SCALE.items()
}
_DISTANCE = 1.5  # in the units of `_place`
_UNITS = (3.0, 1.5, 2.5, 2.5, 1.0, 1.0)  # doublings of clients, GPUs, input and output tokens; ep; dp


class Spot(NamedTuple):
    """One case, as far as likeness goes. `kind` sets apart points that were measured in another way altogether."""

    situation: Situation
    model: ModelSpec
    shape: Shape
    clients: float
    input_tokens: float
    output_tokens: float
    version: str = ""
    kind: str = "plain"


@dataclass(frozen=True, slots=True)
class Points:
    """Where cases are: `labels` are those of `LABELS` for each case, `places` one row of `_UNITS` per case."""

    labels: tuple[tuple[str, ...], ...]
    places: Array


@dataclass(frozen=True, slots=True)
class Residuals:
    """Learnt corrections: measured points, and for each target the weight that each has."""

    points: Points
    weights: Mapping[Target, Array]


NOTHING_LEARNT = Residuals(Points((), np.zeros((0, len(_UNITS)))), {target: np.zeros(0) for target in TARGETS})


def points_at(spots: Sequence[Spot]) -> Points:
    """Where `spots` are."""
    return Points(
        tuple(_labels(spot) for spot in spots), np.array([_place(spot) for spot in spots]).reshape(-1, len(_UNITS))
    )


def learn(points: Points, logarithms: Mapping[Target, Array]) -> Residuals:
    """`logarithms` is log(measured / predicted) of each point, for each target."""
    return Residuals(
        points,
        {target: _weights(points, target, np.clip(logarithms[target], -clip, clip)) for target, clip in _CLIP.items()},
    )


def corrections(residuals: Residuals, points: Points, target: Target) -> Array:
    """The factor for each of `points`."""
    if not residuals.points.labels or not points.labels:
        return np.ones(len(points.labels))
    return np.asarray(np.exp(_covariance(points, residuals.points, target) @ residuals.weights[target]))


@cache
def shipped() -> Residuals:
    """What was learnt from the public points that the shipped constants are fitted to."""
    return read(json.loads((files("placement.cost") / "residuals.json").read_text(encoding="utf-8")))


def read(document: Mapping[str, Any]) -> Residuals:
    """The residuals of a document that `write` made."""
    words = document["words"]
    labels = tuple(tuple(words[number] for number in point["labels"]) for point in document["points"])
    places = np.array([point["place"] for point in document["points"]]).reshape(-1, len(_UNITS))
    weights = {target: np.array([point[target] for point in document["points"]]) for target in TARGETS}
    return Residuals(Points(labels, places), weights)


def write(residuals: Residuals) -> str:
    """A JSON document with one line for each measured point."""
    words = sorted({word for labels in residuals.points.labels for word in labels})
    number = {word: index for index, word in enumerate(words)}
    weights = zip(*(residuals.weights[target] for target in TARGETS), strict=True)
    points = ",\n".join(
        json.dumps(
            {
                "labels": [number[word] for word in labels],
                "place": [round(float(value), 3) for value in place],
                **{target: float(f"{weight:.4g}") for target, weight in zip(TARGETS, row, strict=True)},
            }
        )
        for labels, place, row in zip(residuals.points.labels, residuals.points.places, weights, strict=True)
    )
    head = json.dumps({"labels": list(LABELS), "words": words}, indent=1).removesuffix("\n}")
    return f'{head},\n "points": [\n{points}\n]}}\n'


def _labels(spot: Spot) -> tuple[str, ...]:
    return (
        spot.situation.engine,
        spot.situation.gpu,
        family(spot.model),
        f"{spot.situation.math}|{spot.situation.expert_math}",
        spot.version,
        spot.situation.client,
        spot.kind,
    )


def family(model: ModelSpec) -> str:
    """Models of the same sizes are one to an engine, whatever they are called."""
    return f"{model.architecture} {model.layers}x{model.hidden_size}, {model.experts} experts"


def _place(spot: Spot) -> list[float]:
    doublings = np.log2([spot.clients, spot.shape.gpus, spot.input_tokens, spot.output_tokens])
    return [
        float(value / unit)
        for value, unit in zip([*doublings, spot.shape.ep > 1, spot.shape.dp > 1], _UNITS, strict=True)
    ]


def _weights(points: Points, target: Target, logarithms: Array) -> Array:
    covariance = _covariance(points, points, target)
    trust = np.ones(len(logarithms))
    for _ in range(_ROUNDS):
        noise = _NOISE[target] / trust
        weights = np.linalg.solve(covariance + np.diag(noise), logarithms)
        trust = np.maximum(_LEAST_WEIGHT, 1 / (1 + (noise * weights / _OUTLIER) ** 2))
    return np.asarray(weights)


def _covariance(left: Points, right: Points, target: Target) -> Array:
    near = _nearness(left.places, right.places)
    same = {label: _same(_words(left, label), _words(right, label)) for label in (*LABELS, _RELEASE)}
    total = np.zeros_like(near)
    for component in KERNEL[target]:
        shared = np.logical_and.reduce([same[label] for label in component.same])
        total += component.variance * shared * (component.everywhere + (1 - component.everywhere) * near)
    return np.asarray(total * same["kind"])


def _nearness(left: Array, right: Array) -> Array:
    squares = ((left[:, None, :] - right[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-0.5 * squares / _DISTANCE**2))


def _words(points: Points, label: str) -> list[str]:
    """What each point has for `label`. Its release is its version without the month; nightly builds are one release."""
    if label == _RELEASE:
        releases = (version.partition(" ")[0] for version in _words(points, "version"))
        return ["nightly" if release.startswith("nightly") else release for release in releases]
    index = LABELS.index(label)
    return [labels[index] for labels in points.labels]


def _same(ours: Sequence[str], theirs: Sequence[str]) -> NDArray[np.bool_]:
    """Which pairs share a word; compared as numbers, because comparing text takes most of the time otherwise."""
    numbers: dict[str, int] = {}
    left, right = (np.array([numbers.setdefault(word, len(numbers)) for word in words]) for words in (ours, theirs))
    return np.asarray(left[:, None] == right[None, :])
