"""Prometheus's answers made up: a table of values, for the tests of `autoscaling`."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoscaling.observing import queries
from autoscaling.observing.queries import Answer, Failure, Moment, Series, Span

SECONDS_BOUNDS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
TOKENS_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
Value = float | Mapping[Any, float] | None


def le(*observed: float, bounds: Iterable[float] = SECONDS_BOUNDS, weight: float = 1.0) -> dict[float, float]:
    """Cumulative buckets of what was observed."""
    ordered = sorted(observed)
    counts = {bound: weight * bisect_left(ordered, bound + 1e-12) for bound in bounds}
    return counts | {float("inf"): weight * len(ordered)}


def series(query: queries.Query, value: Value) -> list[Series]:
    """A part of a joined answer. A mapping is by bound, by shape, or by replica and shape; None is empty."""
    if value is None:
        return []
    values = value if isinstance(value, Mapping) else {None: value}
    return [
        Series(labels={queries.NAME: query.name} | _labels(key), points=((0.0, float(found)),))
        for key, found in values.items()
    ]


def _labels(key: Any) -> dict[str, str]:
    match key:
        case None:
            return {}
        case float():
            return {"le": f"{key:g}" if key != float("inf") else "+Inf"}
        case str():
            return {"shape": key}
        case (replica, shape):
            return {"replica": replica, "shape": shape}
    raise TypeError(key)


@dataclass
class Answers:
    """Prometheus as a table: the value of each query, the points of each query over time, or a failure for all."""

    values: Mapping[str, Value] = field(default_factory=dict)
    points: Mapping[str, Callable[[float], float | None]] = field(default_factory=dict)
    failure: Failure | None = None
    asked: list[Moment | Span] = field(default_factory=list)

    def __call__(self, question: Moment | Span) -> Answer | Failure:
        self.asked.append(question)
        if self.failure is not None:
            return self.failure
        wanted = [query for query in queries.ALL if f'"{query.name}"' in question.promql]
        if isinstance(question, Moment):
            return tuple(found for query in wanted for found in series(query, self.values.get(query.name)))
        return tuple(self._over_time(question, wanted or [queries.ARRIVALS]))

    def _over_time(self, question: Span, wanted: list[queries.Query]) -> Iterator[Series]:
        steps = round((question.end_s - question.start_s) / question.step_s) + 1
        assert steps <= queries.MAX_POINTS, "Prometheus would refuse"
        times = [question.start_s + step * question.step_s for step in range(steps)]
        for query in wanted:
            at = self.points.get(query.name, _nothing)
            points = tuple((time_s, value) for time_s in times if (value := at(time_s)) is not None)
            if points:
                yield Series(labels={queries.NAME: query.name}, points=points)


def _nothing(_: float) -> None:
    return None
