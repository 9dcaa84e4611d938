"""Records of load tests as a client would have written them, for the tests of `loadtests`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.measures import Requests, requests_of
from loadtests.records import Record, Run, RunEvent, write_run
from loadtests.report import result
from loadtests.slo import slo_of

SLO = {"ttft_s": 1.0, "tpot_s": 0.05, "attainment": 0.99}
HEADER: dict[str, Any] = {
    "name": "steady chat",
    "url": "http://127.0.0.1:8000",
    "model": "tiny-llama",
    "started_at": "2026-03-02T09:00:00Z",
    "workers": 2,
    "seed": 7,
    "loop": "open",
    "arrivals": "poisson",
    "duration_s": 1200.0,
    "max_lag_ms": 20.0,
    "scenario": {"arrivals": {"kind": "poisson", "rate": 8}, "lengths": {"input": 500, "output": 100}},
    "slo": SLO,
    "invalid": [],
}


def record(scheduled_s: float = 0.0, **changed: Any) -> Record:
    """A good answer of 11 tokens: first after 200 ms, one each 20 ms from then on."""
    plain = Record(
        id=0,
        worker=0,
        class_name=None,
        scheduled_s=scheduled_s,
        sent_s=scheduled_s + 0.001,
        first_s=scheduled_s + 0.2,
        last_s=scheduled_s + 0.4,
        ended_s=scheduled_s + 0.4,
        input_tokens=100,
        output_tokens=11,
        asked_input_tokens=100,
        asked_output_tokens=11,
        events=11,
        longest_gap_s=0.02,
        outcome="ok",
        status=200,
        detail=None,
        finish_reason="length",
        replica=None,
        text_sha=None,
    )
    return replace(plain, **changed)


def refused(scheduled_s: float = 0.0, **changed: Any) -> Record:
    """Turned away after 5 ms."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("first_s", "last_s", "input_tokens", "output_tokens", "longest_gap_s", "finish_reason")
    )
    given = nothing | {"outcome": "refused", "status": 429, "events": 0, "ended_s": scheduled_s + 0.005} | changed
    return record(scheduled_s, **given)


def columns(*records: Record, open_loop: bool = True, slo: Any = None) -> Requests:
    """The columns of a run of these records."""
    return requests_of(records, slo_of({"slo": SLO if slo is None else slo}), open_loop=open_loop)


def document(records: Sequence[Record], events: Sequence[RunEvent] = (), **header: Any) -> dict[str, Any]:
    """The result of a run as it is read from its file."""
    run = HEADER | header
    made = result(run, requests_of(records, slo_of(run), open_loop=run["loop"] == "open"), events)
    read: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    return read


def written(directory: Path, records: Sequence[Record], events: Sequence[RunEvent] = (), **header: Any) -> Path:
    """The records file of a run."""
    path = directory / "records.jsonl"
    write_run(path, Run(header=HEADER | header, events=tuple(events), records=tuple(records)))
    return path


def served(
    seed: int,
    *,
    schedule_seed: int = 0,
    rate_per_s: float = 8.0,
    length_s: float = 1200.0,
    slower: float = 1.0,
) -> list[Record]:
    """A run of Poisson arrivals and log-normal latencies, all `slower` times as long; minutes are alike, not equal."""
    asked, rng = np.random.default_rng(schedule_seed), np.random.default_rng(seed)
    count = round(rate_per_s * length_s)
    arrivals_s = np.sort(asked.uniform(0, length_s, count))
    inputs = asked.lognormal(6.2, 0.9, count).astype(int) + 8
    outputs = asked.lognormal(4.6, 0.6, count).astype(int) + 2
    minute = np.exp(rng.normal(0, 0.08, int(length_s // 60) + 1))[(arrivals_s // 60).astype(int)]
    ttfts_s = slower * minute * (0.12 + inputs / 9000) * rng.lognormal(0, 0.35, count)
    tpots_s = slower * minute * 0.024 * rng.lognormal(0, 0.18, count)
    lags_s = rng.gamma(2, 0.0004, count)
    return [
        record(
            float(at_s),
            id=index,
            worker=index % 2,
            class_name=("chat", "code", "summary")[index % 7 % 3],
            sent_s=float(at_s + lags_s[index]),
            first_s=float(at_s + ttfts_s[index]),
            last_s=float(at_s + ttfts_s[index] + tpots_s[index] * (outputs[index] - 1)),
            ended_s=float(at_s + ttfts_s[index] + tpots_s[index] * (outputs[index] - 1)) + 0.001,
            input_tokens=int(inputs[index]),
            output_tokens=int(outputs[index]),
            asked_input_tokens=int(inputs[index]),
            asked_output_tokens=int(outputs[index]),
            events=int(outputs[index]),
            longest_gap_s=float(tpots_s[index] * rng.uniform(1.5, 4)),
            replica=f"tiny-{('tp2', 'tp4')[index % 3 // 2]}-{index % 3}",
        )
        for index, at_s in enumerate(arrivals_s)
    ]
