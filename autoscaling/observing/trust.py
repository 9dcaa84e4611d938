"""Whether the answers of one moment can be relied on, and if not, why. Pure.

The order matters: what explains most comes first, so that a Prometheus that scrapes nothing is not called a missing
histogram.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoscaling.observation import BlindKind, Fleet, pools_of, spelled
from autoscaling.observing import queries
from autoscaling.observing.queries import Query, Series
from placement import Shape, ShapeError

Parts = Mapping[str, Sequence[Series]]  # by name of query
Trouble = tuple[BlindKind, str]

SILENT_SHARE = 0.25  # of replicas, of ingresses and of the samples in a window that may be missing
_STALE_INTERVALS = 3.0  # of scrapes: how old the newest sample may be, and how far Prometheus's clock may be ahead
_OF_ONE_REPLICA = (queries.RUNNING, queries.WAITING, queries.KV_USAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the answers are held against: when and how they were asked for, and what runs."""

    model: str
    now_s: float
    window_s: float
    scrape_interval_s: float
    fleet: Fleet


def total(parts: Parts, query: Query) -> float:
    """Sum of a part; 0 where it is empty."""
    return sum(series.value for series in parts.get(query.name, ()))


def reporting(parts: Parts) -> dict[Shape, list[str]]:
    """Names of the replicas that export numbers, by shape. Raises `ShapeError`."""
    numbers = [
        {series.labels["replica"]: series.labels["shape"] for series in parts.get(query.name, ()) if _is_number(series)}
        for query in _OF_ONE_REPLICA
    ]
    complete = set.intersection(*map(set, numbers))
    found: dict[Shape, list[str]] = {}
    for replica in sorted(complete):
        found.setdefault(Shape.parse(numbers[0][replica]), []).append(replica)
    return found


def trouble(parts: Parts, seen: Circumstances) -> Trouble | None:
    """The first reason not to believe the answers; None when they can be used."""
    for check in (_unseen, _clocks, _gaps, _missing, _not_numbers, _contradictions, _silence):
        found = next(check(parts, seen), None)
        if found is not None:
            return found
    return None


def _unseen(parts: Parts, seen: Circumstances) -> Iterator[Trouble]:
    if parts.get(queries.NEWEST.name):
        return
    silent = total(parts, queries.SILENT_INGRESSES)
    if silent:
        yield "stale", f"Prometheus cannot scrape the ingress of {seen.model} ({silent:g} with up = 0)."
    elif parts.get(queries.SAMPLES.name):
        yield "stale", f"The ingress of {seen.model} was scraped within {seen.window_s:g} s, but not the last time."
    else:
        what = f"{queries.ARRIVALS.metric}{{model={queries.quoted(seen.model)}}}"
        yield "missing", f"Prometheus has no {what}: its ingress is not scraped, or the model has another name there."


def _clocks(parts: Parts, seen: Circumstances) -> Iterator[Trouble]:
    allowed_s = _STALE_INTERVALS * seen.scrape_interval_s
    age_s = seen.now_s - total(parts, queries.NEWEST)
    if age_s > allowed_s:
        yield (
            "stale",
            f"The newest sample is {age_s:.0f} s old, more than {allowed_s:g} s: "
            "nothing is scraped any more, or Prometheus's clock is behind.",
        )
    ahead_s = total(parts, queries.AHEAD) - seen.now_s
    if ahead_s > allowed_s:
        yield "contradiction", f"Prometheus has samples of {ahead_s:.0f} s ahead: one of the two clocks is wrong."


def _gaps(parts: Parts, seen: Circumstances) -> Iterator[Trouble]:
    samples, expected = total(parts, queries.SAMPLES), seen.window_s / seen.scrape_interval_s
    if samples < math.ceil((1 - SILENT_SHARE) * expected):
        yield (
            "stale",
            f"The last {seen.window_s:g} s have {samples:g} samples, {expected:.0f} are expected at one every "
            f"{seen.scrape_interval_s:g} s: a gap in the scrapes, or an ingress that has just started.",
        )
    silent, live = total(parts, queries.SILENT_INGRESSES), total(parts, queries.INGRESSES)
    if silent > SILENT_SHARE * (silent + live):
        few = f"{silent:g} of {silent + live:g} ingresses"
        yield "stale", f"Prometheus cannot scrape {few}; {SILENT_SHARE:.0%} may be silent."


def _missing(parts: Parts, seen: Circumstances) -> Iterator[Trouble]:
    for query in queries.TICK:
        if query.empty == "missing" and not parts.get(query.name):
            yield (
                "missing",
                f"Prometheus has no {query.metric} of {seen.model}, or only one sample of it in {seen.window_s:g} s.",
            )


def _not_numbers(parts: Parts, seen: Circumstances) -> Iterator[Trouble]:
    for query in queries.TICK:
        if query in _OF_ONE_REPLICA:  # such a replica counts as silent
            continue
        wrong = next((series for series in parts.get(query.name, ()) if not _is_number(series)), None)
        if wrong is not None:
            yield "not-a-number", f"{query.name} ({query.metric} of {seen.model}) is {wrong.value}."


def _contradictions(parts: Parts, seen: Circumstances) -> Iterator[Trouble]:
    try:
        found = reporting(parts)
    except ShapeError as error:
        yield "contradiction", f"A replica of {seen.model} reports a shape that is none: {error}"
        return
    fleet, running = seen.fleet, total(parts, queries.RUNNING)
    if found and running > 0 and not (fleet.serving or fleet.starting or fleet.changing):
        names = ", ".join(name for replicas in found.values() for name in replicas)
        yield (
            "contradiction",
            f"{running:g} requests run on {names}, but the control API knows no replica of {seen.model}.",
        )
    refused, arrivals = total(parts, queries.REFUSED), total(parts, queries.ARRIVALS)
    # Both are counted in the same process and scraped together; the rest is rounding.
    if refused > 1.01 * arrivals:
        yield "contradiction", f"{refused:g} requests/s were refused, but only {arrivals:g} arrived."


def _silence(parts: Parts, seen: Circumstances) -> Iterator[Trouble]:
    found = reporting(parts)
    silent = {shape: max(0, serving - len(found.get(shape, ()))) for shape, serving in seen.fleet.serving.items()}
    serving = sum(seen.fleet.serving.values())
    if sum(silent.values()) > SILENT_SHARE * serving:
        yield (
            "missing",
            f"{spelled(pools_of(silent))} of the {serving} replicas that serve {seen.model} export nothing, or no "
            f"numbers; {SILENT_SHARE:.0%} may be silent.",
        )


def _is_number(series: Series) -> bool:
    return math.isfinite(series.value)
