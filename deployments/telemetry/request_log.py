"""A finished request as one line of JSON. No line has anything of a prompt, an answer or a secret."""

import json

from deployments.telemetry.journey import Journey


def line(journey: Journey, model: str, at: str) -> str:
    """One line, without its end. `at` is when it ended, ISO 8601; durations are in milliseconds, null where none was.

    `replica` gave the first token; `shape` is of the one that gave the last.
    """
    last = max(journey.legs.values(), key=lambda leg: leg.last_at_s, default=None)
    return json.dumps(
        {
            "at": at,
            "event": "request",
            "request_id": journey.request_id,
            "model": model,
            "path": journey.path,
            "status": journey.status or None,
            "finish_reason": journey.finish_reason or None,
            "input_tokens": journey.input_tokens,
            "output_tokens": journey.output_tokens,
            "ttft_ms": _ms(journey.ttft_s),
            "tpot_ms": _ms(journey.tpot_s),
            "duration_ms": _ms(journey.ended_at_s - journey.arrived_at_s),
            "replica": journey.first_replica or None,
            "shape": (last.shape or None) if last else None,
            "migrations": journey.moves,
            "key": journey.key,
        },
        separators=(",", ":"),
    )


def _ms(duration_s: float | None) -> float | None:
    return None if duration_s is None else round(duration_s * 1000, 3)
