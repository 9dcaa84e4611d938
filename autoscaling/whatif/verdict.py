"""A study in two sentences."""

import math
from collections.abc import Iterable

from autoscaling.observation import spelled
from autoscaling.whatif.replay import AS_RUN, OURS
from autoscaling.whatif.study import MEASURED, Study, Way
from placement import Slo

# Tuned, or found, on the very history that they are judged on; nobody could have done so before.
IN_HINDSIGHT = ("ray-serve", "hpa-queue", "hpa-kv", "dynamo", "dynamollm", "best-static")
_OF_OURS = (OURS, "no-repartition", "no-forecast")
_ABOUT_EQUAL = 0.005  # of GPU-hours


def verdict(study: Study) -> tuple[str, str]:
    """What was run against what we would have run, and what the other ways come to."""
    base, said = _base(study)
    ours = study.way(OURS)
    others = _others(study, base)
    length = f"In these {span(study.length_s)}"
    if base is None:
        alone = f"Archipelago would have taken {_figures(ours)}" if ours else "nothing was replayed"
        return f"{length} {alone}.", others
    if ours is None:
        return f"{length} {said} {_figures(base)}.", others
    would = f"Archipelago would have taken {hours(ours.gpu_hours)} at {percent(ours.attainment)}"
    return f"{length} {said} {_figures(base)}; {would}: {_difference(ours, base, study.slo)}.", others


def keeps(way: Way, slo: Slo) -> bool | None:
    """Whether its attainment is that of the SLO; None where it is not known."""
    return None if way.attainment is None else way.attainment >= slo.percentile - 1e-9


def percent(share: float | None) -> str:
    """Never rounded up: what is shown as 100 % missed nothing."""
    if share is None:
        return "unknown"
    digits = 0 if share >= 1 else 2 if share >= 0.99 else 1
    scale = 100 * 10**digits
    return f"{math.floor(share * scale + 1e-6) / scale * 100:.{digits}f} %"


def goal(slo: Slo) -> str:
    """The share of requests that shall keep the SLO."""
    return f"{slo.percentile * 100:.4g} %"


def hours(gpu_hours: float) -> str:
    """GPU-hours, as exact as they are worth."""
    return f"{gpu_hours:,.0f}" if gpu_hours >= 100 else f"{gpu_hours:.1f}"


def span(seconds: float) -> str:
    """A long time for people."""
    for size, least, name in ((86_400, 172_800, "days"), (3600, 7200, "hours"), (60, 60, "minutes")):
        if seconds >= least:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.0f} seconds"


def _base(study: Study) -> tuple[Way | None, str]:
    """What ours is held against, and how to say that it ran."""
    measured, static = study.way(MEASURED), study.way("static")
    if measured is not None:
        return measured, "you ran"
    if static is not None:
        return static, f"{spelled(study.initial)} all the time would have taken"
    best = _best(study, study.ways)
    return best, f"{best.title} would have taken" if best else ""


def _best(study: Study, ways: Iterable[Way]) -> Way | None:
    """Not ours: the cheapest that keeps the SLO, else the one that comes nearest."""

    def rank(way: Way) -> tuple[float, float]:
        return max(0.0, study.slo.percentile - (way.attainment or 0.0)), way.gpu_hours

    return min((way for way in ways if way.name not in _OF_OURS), key=rank, default=None)


def _figures(way: Way) -> str:
    attainment = (
        "an attainment that is not known" if way.attainment is None else f"{percent(way.attainment)} attainment"
    )
    return f"{hours(way.gpu_hours)} GPU-hours at {attainment}"


def _difference(ours: Way, base: Way, slo: Slo) -> str:
    change = ours.gpu_hours / base.gpu_hours - 1 if base.gpu_hours else 0.0
    size = "as many" if abs(change) < _ABOUT_EQUAL else f"{abs(change) * 100:.0f} % {'fewer' if change < 0 else 'more'}"
    target = f"the {goal(slo)} of the SLO are"
    match keeps(base, slo), keeps(ours, slo):
        case (False, True):
            return f"{size}, and {target} reached, which they were not"
        case (True, False):
            return f"{size}, but {target} missed, which they were not"
        case (_, False):
            return f"{size}, and {target} missed"
    return size


def _others(study: Study, base: Way | None) -> str:
    """What the simulator says of the real fleet, and the best that someone else could have done."""
    known = {AS_RUN, MEASURED, *([base.name] if base else [])}
    best = _best(study, (way for way in study.ways if way.name not in known))
    real = study.way(AS_RUN)
    parts = []
    if real is not None:
        parts.append(f"your own fleet, simulated, comes to {_figures(real)}")
    if best is not None:
        name = f"{best.title}{' (tuned in hindsight)' if best.name in IN_HINDSIGHT else ''}"
        missed = "" if keeps(best, study.slo) else ", short of the SLO"
        parts.append(f"{name}, the best of the other ways, comes to {_figures(best)}{missed}")
    text = "; ".join(parts) or "nothing else was replayed"
    return f"{text[0].upper()}{text[1:]}."
