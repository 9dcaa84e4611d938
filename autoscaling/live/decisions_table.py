"""How decisions look in a terminal: a table of them, one with all that it weighed, and a line for each as they come."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autoscaling.decision import Expected, Option
from autoscaling.ledger.entries import Entry, Figures, change_of
from autoscaling.observation import spelled

_UNKNOWN = "?"


def entries_shown(entries: Iterable[Entry]) -> RenderableType:
    """One row for each decision; of which model only where there are several, so that there is room for the reason."""
    shown = list(entries)
    has_many = len({entry.model for entry in shown}) > 1
    columns = ("number", "at", *(["model"] if has_many else []), "decision", "state", "why")
    rows = (
        (
            str(entry.number),
            datetime.fromtimestamp(entry.at_s).isoformat(sep=" ", timespec="seconds"),
            *([entry.model] if has_many else []),
            change_of(entry),
            f"{_state(entry)}, {entry.outcome.verdict}" if entry.outcome else _state(entry),
            f"{entry.decision.cause}: {entry.decision.reason}",
        )
        for entry in shown
    )
    return _table(columns, rows, numbers={"number"}, whole={"number", "at"})


def entry_line(entry: Entry) -> Text:
    """What is new of a decision, in a line."""
    state = entry.outcome.verdict if entry.outcome else _state(entry)
    news = entry.outcome.why if entry.outcome else entry.why or entry.decision.reason
    return plain(f"{_time(entry.since_s)}  {entry.number:>5}  {entry.model}: {change_of(entry)} ({state}): {news}")


def entry_shown(entry: Entry) -> RenderableType:
    """Everything about one decision: what was expected, each option with its price, and what came of it."""
    decision = entry.decision
    parts: list[RenderableType] = [
        plain(f"Decision {entry.number} of {_time(entry.at_s)}, {entry.model}, mode {entry.mode}: {change_of(entry)}"),
        plain(f"{decision.cause}: {decision.reason}"),
        plain(_fate(entry)),
    ]
    if decision.expected is not None:
        parts.append(plain(_expected(decision.expected)))
    if decision.options:
        parts += [
            plain(""),
            plain("What was weighed, the best first; GPU-s with those of the change:"),
            _options(decision.options),
        ]
    else:
        parts.append(plain("Nothing was weighed."))
    if entry.outcome is not None:
        parts += [plain(""), *_outcome(entry)]
    return Group(*parts)


def plain(text: str) -> Text:
    """Text as it is: no markup, and nothing that would move a terminal's cursor."""
    return Text("".join(character if character.isprintable() else " " for character in text))


def _state(entry: Entry) -> str:
    return "advised" if entry.state == "noted" and entry.decision.kind != "hold" else entry.state


def _fate(entry: Entry) -> str:
    by = f" by {entry.by}" if entry.by else ""
    why = f": {entry.why}" if entry.why else ""
    return f"{_state(entry)}{by} at {_time(entry.since_s)}{why}"


def _expected(expected: Expected) -> str:
    return (
        f"Expected for the next {expected.horizon_s:.0f} s: {expected.requests_per_s:.2f} requests/s "
        f"({expected.mean_requests_per_s:.2f} in the mean), {expected.input_tokens:.0f} tokens in and "
        f"{expected.output_tokens:.0f} out."
    )


def _options(options: Sequence[Option]) -> Table:
    columns = (
        "option",
        "pools",
        "SLO kept",
        "once it serves",
        "GPU-s",
        "of it for the change",
        "takes",
        "stall",
        "why",
    )
    rows = (
        (
            option.kind,
            spelled(option.pools),
            f"{option.price.attainment:.1%}",
            f"{option.price.final_attainment:.1%}",
            f"{option.price.gpu_s:.0f}",
            f"{option.price.transition_gpu_s:.0f}",
            f"{option.price.transition_s:.0f} s",
            f"{option.price.stall_s:.1f} s",
            option.why,
        )
        for option in options
    )
    return _table(columns, rows, numbers=set(columns[2:8]))


def _outcome(entry: Entry) -> Iterator[RenderableType]:
    outcome = entry.outcome
    assert outcome is not None
    yield plain(f"Outcome, {outcome.verdict}: {outcome.why}")
    found = (
        (f"{spelled(entry.target)}, predicted", outcome.predicted),
        (f"{spelled(entry.target)}, realised", outcome.realised),
        (f"{spelled(entry.before)}, had they stayed", outcome.without),
    )
    rows = [(name, *_figures(figures)) for name, figures in found if figures is not None]
    if rows:
        columns = ("what", "requests/s", "SLO kept", "TTFT", "TPOT", "GPUs")
        yield _table(columns, rows, numbers=set(columns[1:]))


def _figures(figures: Figures) -> tuple[str, ...]:
    return (
        f"{figures.requests_per_s:.2f}",
        _UNKNOWN if figures.attainment is None else f"{figures.attainment:.1%}",
        _length(figures.ttft_s),
        _length(figures.tpot_s),
        f"{figures.gpus:g}",
    )


def _length(length_s: float | None) -> str:
    if length_s is None:
        return _UNKNOWN
    return f"{length_s * 1e3:.1f} ms" if length_s < 1 else f"{length_s:.1f} s"


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = (), whole: Iterable[str] = ()
) -> Table:
    """`numbers` are columns to the right, `whole` those that are never broken."""
    table = Table()
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().isoformat(sep=" ", timespec="seconds")
