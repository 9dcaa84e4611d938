"""A live experiment as one SVG: demand, SLO attainment, GPUs by shape, and the decisions across all of them. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from live_cases import Experiment, keeps
from live_system import Asked

from autoscaling.ledger.entries import Entry, change_of
from placement import Shape

BIN_S = 15.0
WIDTH, LEFT, RIGHT, TOP, HEIGHT, GAP = 960, 64, 16, 64, 110, 44
COLOURS = ("#4477aa", "#ee7733", "#228833", "#aa3377")
Line = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One diagram. `areas` are stacked, by name; `line` and `limit` are drawn over them."""

    title: str
    top: float
    areas: Mapping[str, Line]
    line: Line
    limit: float | None = None


def svg(experiment: Experiment) -> str:
    """The picture as text."""
    end_s = max(BIN_S, *(look.at_s for look in experiment.looks))
    panels = _panels(experiment)
    height = TOP + len(panels) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for place, panel in enumerate(panels):
        parts += _drawn(panel, TOP + place * (HEIGHT + GAP), end_s)
    parts += _ticks(end_s, height - GAP)
    parts += _decisions(experiment, end_s, height - GAP)
    return "".join([*parts, "</svg>\n"])


def _panels(experiment: Experiment) -> list[Panel]:
    slo, looks = experiment.case.slo, experiment.looks
    shapes = sorted({shape for look in looks for shape in look.serving}, key=lambda name: Shape.parse(name).gpus)
    gpus = {
        name: [(look.at_s, float(Shape.parse(name).gpus * look.serving.get(name, 0))) for look in looks]
        for name in shapes
    }
    held = [(look.at_s, float(look.gpus)) for look in looks]
    limits = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s))
    told = " and ".join(f"{what} within {limit:g} s" for what, limit in limits if limit is not None)
    return [
        _demand("requests/s that are due", experiment.asked, lambda ones: len(ones) / BIN_S),
        _demand("tokens of a prompt, mean", experiment.asked, lambda ones: _mean([one.prompt_tokens for one in ones])),
        Panel(
            title=f"share of the requests with {told} (line: the SLO)",
            top=1.0,
            areas={"": _binned(experiment.asked, lambda ones: _mean([keeps(one, slo) for one in ones]))},
            line=(),
            limit=slo.percentile,
        ),
        Panel(
            title="GPUs that serve, by shape (line: all that are held)",
            top=max(value for _, value in held),
            areas=gpus,
            line=held,
        ),
    ]


def _demand(title: str, asked: Sequence[Asked], of: Callable[[list[Asked]], float]) -> Panel:
    line = _binned(asked, of)
    return Panel(title=title, top=max(value for _, value in line), areas={"": line}, line=())


def _binned(asked: Sequence[Asked], of: Callable[[list[Asked]], float]) -> Line:
    """By when requests were due, in steps; the last, broken one left out."""
    bins: dict[int, list[Asked]] = {}
    for one in asked:
        bins.setdefault(int(one.due_s / BIN_S), []).append(one)
    steps = [(place * BIN_S, of(bins.get(place, []))) for place in range(max(max(bins), 1))]
    return [point for at_s, value in steps for point in ((at_s, value), (at_s + BIN_S, value))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _x(at_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at_s / end_s


def _drawn(panel: Panel, top: float, end_s: float) -> Iterator[str]:
    def y(value: float) -> float:
        return top + HEIGHT * (1 - value / panel.top)

    def points(line: Line) -> str:
        return " ".join(f"{_x(at_s, end_s):.1f},{y(value):.1f}" for at_s, value in line)

    yield f'<text x="{LEFT}" y="{top - 6}">{escape(panel.title)}</text>'
    for value in (0.0, panel.top):
        yield f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{_number(value)}</text>'
    floor = [0.0] * max(len(line) for line in panel.areas.values())
    for place, (name, line) in enumerate(panel.areas.items()):
        colour, legend_x = COLOURS[place % len(COLOURS)], WIDTH - RIGHT - 60 * place
        ceiling = [(at_s, value + below) for (at_s, value), below in zip(line, floor, strict=True)]
        bottom = [(at_s, below) for (at_s, _), below in zip(line, floor, strict=True)]
        yield f'<polygon points="{points([*ceiling, *reversed(bottom)])}" fill="{colour}" fill-opacity="0.6"/>'
        floor = [value for _, value in ceiling]
        if name:
            yield f'<text x="{legend_x}" y="{top - 6}" fill="{colour}" text-anchor="end">{name}</text>'
    if panel.line:
        yield f'<polyline points="{points(panel.line)}" fill="none" stroke="black"/>'
    if panel.limit is not None:
        limit = [(0.0, panel.limit), (end_s, panel.limit)]
        yield f'<polyline points="{points(limit)}" fill="none" stroke="black" stroke-dasharray="4"/>'
    yield f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT}" fill="none" stroke="#999"/>'


def _ticks(end_s: float, bottom: float) -> Iterator[str]:
    for at_s in range(0, int(end_s) + 1, 60):
        yield f'<text x="{_x(at_s, end_s):.1f}" y="{bottom + 16}" text-anchor="middle">{at_s}</text>'
    yield f'<text x="{WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">seconds since the clients began</text>'


def _decisions(experiment: Experiment, end_s: float, bottom: float) -> Iterator[str]:
    """What was carried out, each on a height of its own."""
    for place, entry in enumerate(experiment.changes):
        x, y = _x(entry.at_s - experiment.began_s, end_s), 14 + 14 * (place % 2)
        anchor = "end" if x > WIDTH / 2 else "start"
        yield f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{bottom}" stroke="#cc3311"/>'
        yield f'<text x="{x:.1f}" y="{y - 2}" text-anchor="{anchor}" fill="#cc3311">{escape(_label(entry))}</text>'


def _label(entry: Entry) -> str:
    verdict = f" ({entry.outcome.verdict})" if entry.outcome else ""
    return f"decision {entry.number}: {change_of(entry)}{verdict}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
