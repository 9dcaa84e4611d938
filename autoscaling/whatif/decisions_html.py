"""The decisions of a run as HTML: each change with the options that lost, holds in a row as one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from autoscaling.simulation.result import Decided
from autoscaling.whatif.verdict import percent

_OPTIONS_OF_HOLD = 5  # a hold shows the best few; JSON has all
_CAUSES = {
    "cheapest": "cheapest",
    "least-bad": "nothing keeps the SLO",
    "blind": "blind",
    "changing": "still changing",
    "cooldown": "cooldown",
    "not-yet": "not for long enough",
    "not-worth-it": "not worth it",
    "barred": "barred",
    "schedule": "scheduled",
    "window": "outside the window",
    "frozen": "frozen",
    "limit": "too much at once",
    "revert": "taken back",
}
Clock = Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Decisions in a row that changed nothing."""

    decisions: tuple[Decided, ...]

    @property
    def ticks(self) -> int:
        return sum(one.ticks for one in self.decisions)


def grouped(decisions: Sequence[Decided]) -> Iterator[Decided | Held]:
    """Changes as they are, holds in a row as one."""
    for is_hold, run in groupby(decisions, key=lambda one: one.kind == "hold"):
        if is_hold:
            yield Held(decisions=tuple(run))
        else:
            yield from run


def decisions_html(decisions: Sequence[Decided], *, tick_s: float, clock: Clock) -> str:
    """One element for each change and each run of holds; `clock` writes a time of the run."""
    number = 0
    items = []
    for one in grouped(decisions):
        if isinstance(one, Held):
            items.append(_held(one, tick_s, clock))
        else:
            number += 1
            items.append(_change(one, number, clock))
    return "\n".join(items)


def _change(one: Decided, number: int, clock: Clock) -> str:
    refused = "" if one.accepted else f'<span class="refused">not possible: {escape(one.answer)}</span>'
    cause = "" if one.cause == "cheapest" else f'<span class="cause">{escape(_CAUSES.get(one.cause, one.cause))}</span>'
    way = "" if one.way == "none" else f'<span class="cause">{escape(one.way)}</span>'
    return (
        f'<details class="decision {escape(one.kind)}" data-at="{one.at_s:g}" id="d{number}"><summary>'
        f'<time>{clock(one.at_s)}</time><span class="kind">{escape(one.kind)}</span>'
        f'<b class="target">{escape(_pools(one.target))}</b><span class="why">{escape(one.reason)}</span>'
        f'{cause}{way}{refused}</summary><div class="inside">{_expected(one)}{_options(one, len(one.options))}'
        "</div></details>"
    )


def _held(held: Held, tick_s: float, clock: Clock) -> str:
    first = held.decisions[0]
    counts: dict[str, int] = {}
    reasons: dict[str, Decided] = {}
    for one in held.decisions:
        counts[one.cause] = counts.get(one.cause, 0) + one.ticks
        reasons.setdefault(one.cause, one)
    ranked = sorted(counts, key=lambda cause: -counts[cause])
    causes = ", ".join(f"{_CAUSES.get(cause, cause)} {counts[cause]}x" for cause in ranked)
    shown = "".join(
        f"<li><time>{clock(reasons[cause].at_s)}</time><b>{escape(_CAUSES.get(cause, cause))}</b> "
        f"{escape(reasons[cause].reason)}</li>"
        for cause in ranked
    )
    priced = next((one for one in held.decisions if one.options), first)
    return (
        f'<details class="decision hold" data-at="{first.at_s:g}"><summary><time>{clock(first.at_s)}</time>'
        f'<span class="kind">hold</span><b class="target">{escape(_pools(first.target))}</b>'
        f'<span class="why">{_for(held.ticks * tick_s)}: {escape(causes)}</span></summary>'
        f'<div class="inside"><ul>{shown}</ul>{_options(priced, _OPTIONS_OF_HOLD)}</div></details>'
    )


def _expected(one: Decided) -> str:
    if not one.expected:
        return ""
    expected = one.expected
    return (
        f'<p class="soft">For {expected["requests_per_s"]:.3g} requests/s in the next '
        f"{expected['horizon_s'] / 60:.0f} minutes ({expected['mean_requests_per_s']:.3g} on average), prompts of "
        f"{expected['input_tokens']:,.0f} and answers of {expected['output_tokens']:,.0f} tokens.</p>"
    )


def _options(one: Decided, most: int) -> str:
    every = one.options
    if not every:
        return ""
    rows = "".join(_option(option, has_won=option["pools"] == one.target) for option in every[:most])
    left = f'<p class="soft">and {len(every) - most} more in the JSON</p>' if len(every) > most else ""
    head = "".join(
        f"<th>{title}</th>"
        for title in ("option", "keeps SLO", "once it serves", "GPU-h", "ready after", "longest stall", "why")
    )
    return f'<div class="wide"><table class="options"><tr>{head}</tr>{rows}</table></div>{left}'


def _option(option: Mapping[str, Any], *, has_won: bool) -> str:
    price = option["price"]
    cells = (
        escape(_pools(option["pools"])),
        percent(price["attainment"]),
        percent(price["final_attainment"]),
        f"{price['gpu_s'] / 3600:.2f}",
        _for(price["transition_s"]) if price["transition_s"] else "\u2013",
        _for(price["stall_s"]) if price["stall_s"] else "\u2013",
        escape(str(option["why"])),
    )
    return f'<tr class="{"won" if has_won else "lost"}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _pools(pools: Mapping[str, int]) -> str:
    return " + ".join(f"{replicas} \u00d7 {shape}" for shape, replicas in pools.items()) or "what runs"


def _for(seconds: float) -> str:
    """A length of time, short."""
    if seconds >= 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes:02d} min"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
