"""A plan for people (aligned text) and for programs (plain values for JSON)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from placement.cost.prediction import Load
from placement.cost.simulation import at_percentile
from placement.layout import Layout
from placement.planning.chance import MEASURED
from placement.planning.option import Option, tail
from placement.planning.plan import Plan
from placement.planning.reasons import asked_of, count, has_limits, per_cent, promise
from placement.workload import Slo

_MS = 1e3
_MIB, _GIB = 1024**2, 1024**3
_SHOWN_ISLANDS = 4
_HEADER = (  # two lines, so that a row fits into 80 columns
    ("", "", "", "", "", "TTFT", "TPOT", "tok/s", "", "most"),
    ("shape", "replicas", "GPUs", "chance", "running", "ms", "ms", "/GPU", "comm", "req/s"),
)


def as_text(plan: Plan, *, most: int = 8, own_sources: Sequence[str] = ()) -> str:
    """The two answers, the ranking with reasons, and where the numbers come from; `own_sources` are the caller's."""
    return "\n".join([*_head(plan), *_answers(plan), *_ranking(plan, most), *_sources(plan, own_sources)])


def as_json(plan: Plan, *, own_sources: Sequence[str] = ()) -> dict[str, Any]:
    """Everything in the plan; times in ms, memory in bytes."""
    return {
        "model": plan.question.model.name,
        "engine": plan.question.engine,
        "slo": {
            "ttft_ms": None if plan.slo.ttft_s is None else plan.slo.ttft_s * _MS,
            "tpot_ms": None if plan.slo.tpot_s is None else plan.slo.tpot_s * _MS,
            "percentile": plan.slo.percentile,
        },
        "feasible": plan.infeasible is None,
        "constraint": plan.infeasible.constraint if plan.infeasible else None,
        "nearest": plan.infeasible.nearest if plan.infeasible else None,
        "partition": _option(plan.partition, plan.slo) if plan.partition else None,
        "closest": _option(plan.closest, plan.slo) if plan.closest else None,
        "options": [_option(option, plan.slo) for option in plan.options],
        "do_not_fit": [str(prediction.shape) for prediction in plan.predictions if not prediction.fits],
        "sources": [*_source_lines(plan), *own_sources],
    }


def _head(plan: Plan) -> list[str]:
    workload, model = plan.question.workload, plan.question.model
    tokens_in, tokens_out = workload.input_tokens.mean_tokens, workload.output_tokens.mean_tokens
    slo = [f"TTFT {plan.slo.ttft_s * _MS:g} ms"] if plan.slo.ttft_s else []
    slo += [f"TPOT {plan.slo.tpot_s * _MS:g} ms"] if plan.slo.tpot_s else []
    limits = f"{' and '.join(slo)} at p{plan.slo.percentile * 100:g}" if slo else "none"
    return [
        f"{model.name}: {_parameters(model.parameters)} parameters, {_size(model.weight_bytes)} of weights",
        f"workload: {tokens_in:,.0f} tokens in, {tokens_out:,.0f} out, {asked_of(workload)}",
        f"SLO: {limits}",
        "",
    ]


def _answers(plan: Plan) -> list[str]:
    best, smallest = plan.best, plan.partition
    if best is None or smallest is None:
        answer = plan.infeasible
        return [f"No: {answer.constraint}.", f"Nearest: {answer.nearest}.", ""] if answer else []
    does = "meets the SLO" if has_limits(plan.slo) else "fits"
    return [
        f"How to cut it:    {smallest.shape} is the smallest that {does} "
        f"({count(smallest.shape.gpus, 'GPU')} each{_sure(smallest, plan.slo)}).",
        f"What to run:      {best.replicas} x {best.shape} = {count(best.gpus, 'GPU')}{_money(best)}"
        f"{_sure(best, plan.slo)}.",
        *(_layout(number, layout) for number, layout in enumerate(best.layouts[:_SHOWN_ISLANDS], start=1)),
        *([f"  ... and {best.replicas - _SHOWN_ISLANDS} more replicas"] if best.replicas > _SHOWN_ISLANDS else []),
        "",
    ]


def _ranking(plan: Plan, most: int) -> Iterator[str]:
    options = plan.options or ((plan.closest,) if plan.closest else ())
    if not options:
        return
    is_mixed = len({prediction.region.kind.kind for prediction in plan.predictions}) > 1
    rows = [*_HEADER, *(_row(option, plan.slo, is_mixed=is_mixed) for option in options[:most])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows, start=-len(_HEADER)):
        cells = zip(row, widths, strict=True)
        yield "  ".join(
            cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells)
        ).rstrip()
        if number >= 0 and options[number].reason:
            yield f"    {options[number].reason}"
    if len(options) > most:
        yield f"  ... and {len(options) - most} more{' that meet the SLO' if has_limits(plan.slo) else ''}"
    yield from _legend(plan, options[:most])
    yield ""


def _legend(plan: Plan, shown: Sequence[Option]) -> Iterator[str]:
    slo, workload = plan.slo, plan.question.workload
    carried = "the most that is worth the risk" if has_limits(slo) else "the most it can"
    if not all(option.meets_slo for option in shown):
        carried = "the load that comes closest to the SLO"
    elif workload.requests_per_s is not None:
        carried = "its share of the asked rate and headroom for bursts"
    elif workload.concurrency is not None:
        carried = "its share of the clients"
    simulated = sum(option.tails is not None for option in shown)
    alone = f", in {simulated} of these simulated request by request" if simulated else ""
    yield f"running, tok/s/GPU, comm and the sentences: each replica with {carried}, on average."
    yield f"TTFT and TPOT: p{slo.percentile * 100:g}{alone}."
    if has_limits(slo):
        yield f"chance: that {promise(slo)} will be kept, from how far off such predictions were where it was measured."
        yield f"most req/s: of all replicas, where {promise(slo)} would be kept with even chance."
    else:
        yield "most req/s: of all replicas, whatever the latency."


def _row(option: Option, slo: Slo, *, is_mixed: bool) -> tuple[str, ...]:
    ttft_s, tpot_s = _times(option, slo)
    return (
        f"{option.shape} {option.prediction.region.kind.kind}" if is_mixed else str(option.shape),
        str(option.replicas),
        str(option.gpus),
        per_cent(option.chance) if has_limits(slo) else "-",
        f"{option.load.running:.0f}",
        f"{ttft_s * _MS:.0f}",
        f"{tpot_s * _MS:.1f}",
        f"{option.tokens_per_s_per_gpu:.0f}",
        f"{option.load.communication_share:.0%}",
        f"{option.most_requests_per_s:.2f}",
    )


def _times(option: Option, slo: Slo) -> tuple[float, float]:
    """TTFT and TPOT at the percentile of the SLO: simulated at the asked rate where it was, else at its load."""
    if option.tails is None:
        return tail(option.load, slo.percentile)
    return at_percentile(option.tails.ttft_s, slo.percentile), at_percentile(option.tails.tpot_s, slo.percentile)


def _parameters(parameters: float) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def _size(size_bytes: float) -> str:
    if size_bytes < _GIB:
        return f"{size_bytes / _MIB:.0f} MiB"
    return f"{size_bytes / _GIB:.{0 if size_bytes >= 10 * _GIB else 1}f} GiB"


def _layout(number: int, layout: Layout) -> str:
    nodes: dict[str, list[str]] = {}
    for seat in layout.seats:
        nodes.setdefault(f"{seat.node} ({seat.island})", []).append(str(seat.slot))
    seats = "; ".join(
        f"{node} GPU{'s' if len(slots) > 1 else ''} {_compact(slots)}"
        for node, slots in list(nodes.items())[:_SHOWN_ISLANDS]
    )
    return f"  replica {number}: {seats}{'; ...' if len(nodes) > _SHOWN_ISLANDS else ''}"


def _compact(slots: list[str]) -> str:
    return slots[0] if len(slots) == 1 else f"{slots[0]}-{slots[-1]}"


def _money(option: Option) -> str:
    return "" if option.usd_per_hour is None else f", {option.usd_per_hour:.2f} USD per hour at list price"


def _sure(option: Option, slo: Slo) -> str:
    return f", {per_cent(option.chance)} chance" if has_limits(slo) else ""


def _sources(plan: Plan, own: Sequence[str]) -> list[str]:
    return ["where the numbers come from:", *(f"  {line}" for line in (*_source_lines(plan), *own))]


def _source_lines(plan: Plan) -> Iterator[str]:
    yield from dict.fromkeys(line for prediction in plan.predictions for line in prediction.sources)
    if has_limits(plan.slo):
        yield from dict.fromkeys(_chance_source(option) for option in plan.options)


def _chance_source(option: Option) -> str:
    spread, kind = option.ground.spread, option.prediction.region.kind.kind
    tpot, ttft = spread.halves
    known = "was" if spread == MEASURED else "was not"
    return (
        f"chances: this model {known} measured on {kind} with this engine; of such predictions, out of fold, half are "
        f"within {tpot:.0%} for TPOT and {ttft:.0%} for TTFT"
    )


def _option(option: Option, slo: Slo) -> dict[str, Any]:
    ttft_s, tpot_s = _times(option, slo)
    memory, room = option.prediction.memory, option.prediction.room
    return {
        "shape": str(option.shape),
        "gpu": option.prediction.region.kind.kind,
        "replicas": option.replicas,
        "gpus": option.gpus,
        "usd_per_hour": option.usd_per_hour,
        "meets_slo": option.meets_slo,
        "chance": option.chance if has_limits(slo) else None,
        "ttft_ms": ttft_s * _MS,
        "tpot_ms": tpot_s * _MS,
        "requests_per_s": option.load.requests_per_s * option.replicas,
        "most_requests_per_s": option.most_requests_per_s,
        "output_tokens_per_s_per_gpu": option.tokens_per_s_per_gpu,
        "running_requests": option.load.running,
        "memory": {
            "weights_bytes": memory.weights_bytes,
            "activation_bytes": memory.activation_bytes,
            "available_bytes": memory.available_bytes,
            "kv_room_tokens": room.tokens * option.shape.dp,
            "kv_room_requests": room.requests * option.shape.dp,
        },
        "step_ms": _step(option.load),
        "queue_ms": option.load.queue_s * _MS,
        "tails_ms": _tails(option),
        "measured_factor": option.load.measured_factor,
        "communication_share": option.load.communication_share,
        "layouts": [
            [{"rank": seat.rank, "island": seat.island, "node": seat.node, "slot": seat.slot} for seat in layout.seats]
            for layout in option.layouts
        ],
        "reason": option.reason,
    }


def _tails(option: Option) -> dict[str, dict[str, float]] | None:
    if option.tails is None:
        return None
    return {
        name: {key.removesuffix("_s"): value * _MS for key, value in asdict(times).items()}
        for name, times in (("ttft", option.tails.ttft_s), ("tpot", option.tails.tpot_s))
    }


def _step(load: Load) -> dict[str, float]:
    return {name.removesuffix("_s"): seconds * _MS for name, seconds in load.parts_s.items()}
