"""From what the workers of a run wrote to one account of it, with every arrival and every doubt about the client."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtests.client import OWN_LIMITS
from loadtests.plan import Folder, milliseconds
from loadtests.records import Record, read_records
from loadtests.scenario import Scenario
from loadtests.schedule import Request


def merged(
    scenario: Scenario, folder: Folder, requests: Sequence[Request], reference: Mapping[int, Record]
) -> tuple[dict[str, Any], tuple[Record, ...]]:
    """The header and the records of a run, in the order of their times.

    Args:
        scenario: what was run.
        folder: where the workers wrote.
        requests: all of an open loop; what has no record among them is counted as unfinished. Empty for a closed loop.
        reference: records whose texts must be equal, by request.
    """
    records: list[Record] = []
    clients: list[dict[str, Any]] = []
    for worker in range(scenario.workers):
        found = _records(folder.worker_records(worker))
        records += found
        clients.append({"worker": worker, "requests": len(found), **_figures(found, folder.worker_figures(worker))})
    missing = {request.id: request for request in requests}
    for record in records:
        missing.pop(record.id, None)
    doubts = [*_doubts(scenario, clients, records, folder)]
    if missing:
        doubts.append(f"{len(missing)} of {len(requests)} requests have no record: the client did not get to them")
    records += [_never_sent(request, scenario) for request in missing.values()]
    header = _header(scenario, clients, doubts)
    if reference:
        header["texts_compared"] = sum(_can_be_compared(record, reference) for record in records)
        if not header["texts_compared"]:
            doubts.append("no text could be compared with the reference run")
        records = [_compared(record, reference) for record in records]
    records.sort(key=lambda record: (record.scheduled_s, record.id))
    return header, tuple(records)


def _header(scenario: Scenario, clients: list[dict[str, Any]], doubts: list[str]) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "url": scenario.url,
        "endpoint": scenario.endpoint,
        "loop": "open" if scenario.is_open else "closed",
        "arrivals": scenario.arrivals.kind if scenario.arrivals else "closed loop",
        "duration_s": scenario.duration_s,
        "drain_s": scenario.drain_s,
        "workers": scenario.workers,
        "seed": scenario.seed,
        "max_lag_ms": scenario.max_lag_ms,
        "slo": scenario.slo_json(),
        "scenario": scenario.model_dump(mode="json", exclude_defaults=True),
        "client": clients,
        "invalid": doubts,
    }


def _records(path: Path) -> list[Record]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return read_records(lines)


def _figures(records: Sequence[Record], own: Path) -> dict[str, Any]:
    """How late a worker was: in sending, and in waking when it had nothing else to do."""
    lags = milliseconds([record.sent_s - record.scheduled_s for record in records if record.sent_s is not None])
    with contextlib.suppress(FileNotFoundError):
        return {"lag_ms": lags, **json.loads(own.read_text(encoding="utf-8"))}
    return {"lag_ms": lags, "loop_lag_ms": None}


def _doubts(
    scenario: Scenario, clients: Sequence[Mapping[str, Any]], records: Sequence[Record], folder: Folder
) -> Iterator[str]:
    """Why the figures of this run may say more about its client than about the server."""
    for client in clients:
        name = f"worker {client['worker']} of the client"
        if client["loop_lag_ms"] is None:
            yield f"{name} did not come to its end; see {folder.log}"
        lags = (client["lag_ms"]["p99"], (client["loop_lag_ms"] or {}).get("p99"))
        lag_ms = max((lag for lag in lags if lag is not None), default=0.0)
        if lag_ms > scenario.max_lag_ms:
            yield (
                f"{name} was {lag_ms:.1f} ms late (p99), above max_lag_ms ({scenario.max_lag_ms:g}): {_remedy(client)}"
            )
    limited = sum(any(limit in (record.detail or "") for limit in OWN_LIMITS) for record in records)
    if limited:
        yield f"{limited} requests found no file or port on the client's machine; raise `ulimit -n`"


def _remedy(client: Mapping[str, Any]) -> str:
    """What helps a worker that was late: it had too much to do, or others on its machine had."""
    ran_s, waited_s = client.get("ran_s"), client.get("waited_s")
    if ran_s is None or waited_s is None:
        return "give the scenario more workers, or this machine less to do"
    remedy = "give this machine less to do" if waited_s > ran_s else "give the scenario more workers"
    return f"it ran for {ran_s:.1f} s and waited {waited_s:.1f} s for a processor; {remedy}"


def _never_sent(request: Request, scenario: Scenario) -> Record:
    return Record(
        id=request.id,
        worker=request.id % scenario.workers,
        class_name=request.class_name,
        scheduled_s=request.at_s,
        sent_s=None,
        first_s=None,
        last_s=None,
        ended_s=scenario.duration_s + scenario.drain_s,
        input_tokens=None,
        output_tokens=None,
        asked_input_tokens=request.input_tokens,
        asked_output_tokens=request.output_tokens,
        events=0,
        longest_gap_s=None,
        outcome="unfinished",
        status=None,
        detail="no record of it: its worker ended before it did",
        finish_reason=None,
        replica=None,
        text_sha=None,
    )


def _can_be_compared(record: Record, reference: Mapping[int, Record]) -> bool:
    """Whether both texts are whole; where one is not, the record that is bad says so itself."""
    same = reference.get(record.id)
    return record.outcome == "ok" and same is not None and same.outcome == "ok"


def _compared(record: Record, reference: Mapping[int, Record]) -> Record:
    """A whole answer whose text is not that of the reference run is a failure."""
    if not _can_be_compared(record, reference) or reference[record.id].text_sha == record.text_sha:
        return record
    return replace(record, outcome="text-differs", detail="the text is not that of the reference run")
