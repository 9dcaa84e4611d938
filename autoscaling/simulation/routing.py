"""Which replica gets a request, and whether any does: as the router of `deployments` does it, everything in seconds.

A replica costs the prompts before this one, or when it is full the wait for a place, and a quarter of the answers still
to be written there: decodes share their steps. One that would keep the request waiting too long, or has too many
waiting, is passed over; where all are, the request is refused. The answer's length is not known to a router, so that
answers count by the mean.
"""

from collections.abc import Iterable

from autoscaling.simulation.units import Unit

_DECODE_WEIGHT = 0.25  # deployments/routing/choosing.py


def cheapest(units: Iterable[Unit], at_s: float, prompt: float, answer: float, most_s: float, most: int) -> Unit | None:
    """The unit that costs a request of `prompt` tokens least, None if all would make it wait for longer than `most_s`.

    `answer` is the mean answer, `most` the requests that may wait at one unit. A prompt that takes most of `most_s` by
    itself may queue for as long as it computes.
    """
    best, least_s = None, float("inf")
    for unit in units:
        replica, engine = unit.replica, unit.engine
        if replica.due_s <= at_s:
            replica.advance(at_s)
        own_s = prompt * engine.prompt_token_s
        queued_s = replica.unread_tokens * engine.prompt_token_s
        decode_s = replica.outstanding * answer * engine.answer_token_s
        if replica.waiting and (not replica.free_places or replica.free_tokens < prompt):
            queued_s = max(queued_s, decode_s * min(1.0, (len(replica.waiting) + 1) / replica.outstanding))
        cost_s = queued_s + own_s + _DECODE_WEIGHT * decode_s
        if cost_s < least_s and queued_s <= max(most_s - own_s, own_s) and len(replica.waiting) < most:
            best, least_s = unit, cost_s
    return best
