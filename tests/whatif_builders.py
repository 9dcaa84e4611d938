"""A model's past as numbers, as Prometheus's answers, and as samples for a real one; and runs without a simulator."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoscaling.observation import Array, History
from autoscaling.observing import queries
from autoscaling.observing.queries import Answer, Failure, Moment, Series, Span
from autoscaling.simulation.result import Decided, Percentiles, Result
from autoscaling.simulation.result import Series as Over
from autoscaling.simulation.traces import Trace
from autoscaling.whatif import asking
from autoscaling.whatif.past import WINDOW_S, Answers, Habits, Past, Ran
from autoscaling.whatif.reconstruction import fidelity, reconstructed
from autoscaling.whatif.study import Study
from placement import Shape, Slo

TP2, TP4 = Shape(tp=2), Shape(tp=4)
NOW_S = 1_800_000_000.0
SLO = Slo(ttft_s=2.0, tpot_s=0.05, percentile=0.99)
QUERIES = (*queries.ALL, asking.HELD, asking.DESIRED)


def past(
    requests_per_s: Array,
    *,
    input_tokens: float = 1000.0,
    output_tokens: float = 200.0,
    spread: float = 0.8,
    **given: Any,
) -> Past:
    """Minutes of so many requests a second, a whole number of windows of them."""
    windows = len(requests_per_s) // 5
    habits = Habits(spreads=np.full(windows, np.nan), spread=spread, most_tokens=np.inf)
    history = History(
        step_s=60.0,
        end_s=NOW_S,
        requests_per_s=requests_per_s,
        answered_per_s=requests_per_s,
        input_tokens_per_s=requests_per_s * input_tokens,
        output_tokens_per_s=requests_per_s * output_tokens,
    )
    known: dict[str, Any] = {
        "model": "m",
        "origin": "archipelago",
        "history": history,
        "inputs": habits,
        "outputs": habits,
        "refused_share": np.zeros(windows),
        "prefix_hit_rate": 0.0,
        "dispersion": 1.0,
        "answers": None,
        "ran": None,
    }
    return Past(**(known | given))


@dataclass
class Answering:
    """Prometheus as a table: the value of each query by label, all the time but in `gaps`; or a failure for all."""

    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gaps: tuple[tuple[float, float], ...] = ()
    failure: Failure | None = None
    models: tuple[str, ...] = ()

    def __call__(self, question: Moment | Span) -> Answer | Failure:
        if self.failure is not None:
            return self.failure
        if isinstance(question, Moment):
            return tuple(Series(labels={"model": name}, points=((question.at_s, 1.0),)) for name in self.models)
        wanted = [query for query in QUERIES if f'"{query.name}"' in question.promql] or [queries.ARRIVALS]
        times = np.arange(question.start_s, question.end_s + 1, question.step_s).tolist()
        times = [at_s for at_s in times if not any(start < at_s <= end for start, end in self.gaps)]
        return tuple(
            Series(labels=_labels(query.name, label), points=tuple((at_s, value) for at_s in times))
            for query in wanted
            for label, value in self.values.get(query.name, {}).items()
            if times
        )


def _labels(name: str, label: str) -> dict[str, str]:
    key = "le" if name.endswith("_buckets") else "shape"
    return {queries.NAME: name} | ({key: label} if label else {})


def answering(**given: Any) -> Answering:
    """Two requests a second of 300 and 50 tokens on two tp4; one answer in 50 is late to begin."""
    values: dict[str, Mapping[str, float]] = {
        "arrivals": {"": 2.0},
        "input_tokens": {"": 600.0},
        "output_tokens": {"": 100.0},
        "ttft_buckets": {"2": 1.96, "5": 2.0, "+Inf": 2.0},
        "tpot_buckets": {"0.05": 2.0, "+Inf": 2.0},
        "input_sum": {"": 600.0},
        "input_buckets": {"200": 0.6, "500": 1.8, "1000": 2.0, "+Inf": 2.0},
        "output_sum": {"": 100.0},
        "output_buckets": {"50": 1.2, "100": 2.0, "+Inf": 2.0},
        "computed": {"": 450.0},
        "hits": {"": 150.0},
        "held": {"tp4": 2.0, "tp2": 0.0},
        "desired": {"tp4": 2.0, "tp2": 0.0},
    }
    return Answering(**({"values": values | given.pop("values", {})} | given))


SAMPLES_S, INTERVAL_S = 6 * 3600.0, 30.0


def rate_at(at_s: float) -> float:
    """Requests a second of the written history: three hours of 0.5, then three of 1."""
    return 0.5 if at_s <= NOW_S - SAMPLES_S / 2 else 1.0


def tp4_at(at_s: float) -> int:
    """Replicas of tp4, which ran beside nothing else."""
    return 1 if at_s <= NOW_S - SAMPLES_S / 2 else 2


def samples(model: str = "m", *, is_ours: bool = True) -> Iterator[str]:
    """Six hours as OpenMetrics: prompts of 400 tokens and answers of 80 on average, 2 % of the first tokens late."""
    told = f'model_name="{model}"'
    counters = {
        f"vllm:request_prompt_tokens_count{{{told}}}": 1.0,
        f"vllm:generation_tokens_total{{{told}}}": 80.0,
        f"vllm:request_prompt_tokens_sum{{{told}}}": 400.0,
        f"vllm:request_generation_tokens_sum{{{told}}}": 80.0,
        f"vllm:time_to_first_token_seconds_count{{{told}}}": 1.0,
    }
    if is_ours:
        counters[f'archipelago_arrivals_total{{model="{model}"}}'] = 1.0
        counters[f'archipelago_replica_prefix_hit_tokens_total{{model="{model}",replica="a",shape="tp4"}}'] = 100.0
        counters[f'archipelago_replica_prompt_tokens_total{{model="{model}",replica="a",shape="tp4"}}'] = 300.0
    histograms: dict[str, dict[str, float]] = {
        "vllm:time_to_first_token_seconds": {"1.0": 0.9, "2.0": 0.98, "5.0": 1.0},
        "vllm:request_time_per_output_token_seconds": {"0.05": 1.0, "0.1": 1.0},
        "vllm:request_prompt_tokens": {"200.0": 0.3, "500.0": 0.7, "1000.0": 1.0},
        "vllm:request_generation_tokens": {"50.0": 0.3, "100.0": 0.75, "200.0": 1.0},
    }
    for name, shares in histograms.items():
        for bound, share in {**shares, "+Inf": 1.0}.items():
            counters[f'{name}_bucket{{{told},le="{bound}"}}'] = share
    times = np.arange(NOW_S - SAMPLES_S, NOW_S + 1, INTERVAL_S).tolist()
    totals = np.cumsum([rate_at(at_s) * INTERVAL_S for at_s in times]).tolist()
    for name, weight in counters.items():
        yield from (f"{name} {total * weight:.3f} {at_s:.0f}" for total, at_s in zip(totals, times, strict=True))
    if is_ours:
        labels = f'model="{model}",shape="tp4"'
        for name in (
            f'archipelago_fleet_replicas{{{labels},phase="serving"}}',
            f"archipelago_fleet_desired_replicas{{{labels}}}",
        ):
            yield from (f"{name} {tp4_at(at_s)} {at_s:.0f}" for at_s in times)


def priced(pools: Mapping[str, int], why: str, **price: float) -> dict[str, Any]:
    known = {"attainment": 0.995, "gpu_s": 7200.0, "final_attainment": 0.999, "transition_s": 90.0}
    none = {"transition_gpu_s": 0.0, "stall_s": 0.0}
    return {"kind": "replicas", "pools": dict(pools), "price": known | none | price, "why": why}


def decided(at_s: float, **given: Any) -> Decided:
    known: dict[str, Any] = {
        "at_s": at_s,
        "kind": "hold",
        "cause": "cheapest",
        "target": {"tp4": 1},
        "reason": "1 x tp4 keeps the SLO",
    }
    return Decided(**(known | given))


DECISIONS = (
    decided(15.0, ticks=4),
    decided(75.0, cause="not-yet", reason="not for 2 minutes yet", ticks=8),
    decided(
        195.0,
        kind="repartition",
        target={"tp2": 2},
        reason="TPOT is <2x> over target: tp2 & only tp2 cures it",
        way="surge",
        options=(priced({"tp2": 2}, "cheapest"), priced({"tp4": 2}, "costs twice as much", gpu_s=14400.0)),
    ),
    decided(210.0, cause="changing", target={"tp2": 2}, reason="under way", ticks=3),
    decided(255.0, kind="replicas", target={"tp2": 9}, reason="more", accepted=False, answer="no room for 9"),
)


def result(policy: str, *, gpu_hours: float = 10.0, attainment: float = 0.995, **given: Any) -> Result:
    """Of an hour with a request a second, one tp4 all the time."""
    times = Percentiles(mean=0.1, p50=0.1, p90=0.2, p95=0.3, p99=0.4)
    good = round(3600 * attainment)
    minutes = tuple(60.0 * minute for minute in range(60))

    def all_the_time(value: Any) -> tuple[Any, ...]:
        return (value,) * 60

    known: dict[str, Any] = {
        "policy": policy,
        "trace": "m",
        "seed": 0,
        "duration_s": 3600.0,
        "arrivals": 3600,
        "good": good,
        "late": 3600 - good,
        "refused": 0,
        "unfinished": 0,
        "attainment": attainment,
        "gpu_hours": gpu_hours,
        "goodput_requests_per_s": 1.0,
        "goodput_tokens_per_s": 100.0,
        "worst_5_minutes": 0.9,
        "minutes_kept": 1.0,
        "ttft_s": times,
        "tpot_s": times,
        "actions": {"up": 1, "down": 0, "repartition": 1},
        "reversals": 0,
        "moved_requests": 0,
        "recomputed_tokens": 0,
        "longest_stall_s": 0.0,
        "attainment_by_class": {},
        "decisions": DECISIONS if policy == "archipelago" else (),
        "series": Over(
            minute_s=minutes,
            requests_per_s=all_the_time(1.0),
            input_tokens_per_s=all_the_time(1000.0),
            output_tokens_per_s=all_the_time(200.0),
            attainment=all_the_time(attainment),
            ttft_p99_s=all_the_time(0.4),
            tpot_p99_s=all_the_time(0.02),
            gpus={"tp4": all_the_time(4.0)},
        ),
    }
    return Result(**(known | given))


def ran(minutes: int, replicas: float = 3.0) -> Ran:
    row = np.full(minutes, replicas)
    return Ran(held={TP4: row}, desired={TP4: row})


def study(*results: Result, has_past: bool = True, attainment: float = 0.985, **given: Any) -> Study:
    """An hour of one request a second, on three tp4 (12 GPU-hours) unless `past` is given otherwise."""
    ended = np.full(12, WINDOW_S)
    answers = Answers(ended=ended, kept=ended * attainment)
    found = past(np.ones(60), answers=answers, ran=ran(60)) if has_past else None
    tokens = np.full(3600, 9.0)
    trace = Trace(arrivals_s=np.arange(3600, dtype=np.float64), input_tokens=tokens, output_tokens=tokens)
    made = trace if found is None else reconstructed(found, 0)
    known: dict[str, Any] = {
        "model": "m",
        "source": "meta-llama/Llama-3.1-70B",
        "cluster": "4x dgx-h100",
        "slo": SLO,
        "initial": {TP4: 3},
        "seed": 0,
        "tick_s": 15.0,
        "trace": made,
        "results": results,
        "past": found,
        "fidelity": None if found is None else fidelity(found, made),
        "notes": (),
    }
    return Study(**(known | given))
