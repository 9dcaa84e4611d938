"""What a fleet needs of placement's replica: to look at it cheaply, and to take its requests away."""

import math
from dataclasses import replace

import numpy as np
import pytest
from fleet_runs import PLAIN
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Lengths
from placement.cost.simulation import lengths, poisson_arrivals
from placement.cost.simulation_replica import Replica, Requests

COUNT = 30


def _replica(seed: int, stages: int) -> tuple[Replica, list[float]]:
    """A replica with room for some of its requests, and when they are sent."""
    generator = np.random.default_rng(seed)
    never = [math.inf] * COUNT
    requests = Requests(
        prompts=lengths(Lengths(mean_tokens=800, spread=0.5), COUNT, generator).clip(1, 2000).tolist(),
        answers=lengths(Lengths(mean_tokens=40, spread=1), COUNT, generator).clip(1, 1000).tolist(),
        sent_s=[*never],
        first_s=[*never],
        ended_s=[*never],
    )
    # An odd slope, so that no two events fall together and rounding cannot swap them.
    table = replace(PLAIN, stages=stages, added_s=((0.0, 0.0), (0.08192 / math.sqrt(2), 0.07 * math.sqrt(3))))
    replica = Replica(
        table=table, requests=requests, room_tokens=5000.0, free_tokens=5000.0, free_places=8, following=COUNT
    )
    return replica, poisson_arrivals(20, COUNT, generator).tolist()


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), stages=st.sampled_from([1, 4]))
def test_looking_changes_nothing_and_shows_what_has_ended(seed: int, stages: int) -> None:
    blind, arrivals_s = _replica(seed, stages)
    for index, sent_s in enumerate(arrivals_s):
        blind.run(sent_s)
        blind.send(sent_s, index)
    blind.run(math.inf)
    looking, _ = _replica(seed, stages)
    for index, sent_s in enumerate(arrivals_s):
        looking.advance(sent_s)
        ended = sum(end_s <= sent_s for end_s in blind.requests.ended_s)
        assert index - looking.outstanding >= ended
        looking.send(sent_s, index)
    looking.advance(math.inf)
    assert looking.requests.ended_s == pytest.approx(blind.requests.ended_s)
    assert looking.requests.first_s == pytest.approx(blind.requests.first_s)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), stages=st.sampled_from([1, 4]), at_s=st.floats(0.0, 3.0))
def test_what_is_given_up_is_all_that_has_not_ended(seed: int, stages: int, at_s: float) -> None:
    replica, arrivals_s = _replica(seed, stages)
    sent = [index for index, sent_s in enumerate(arrivals_s) if sent_s <= at_s]
    for index in sent:
        replica.advance(arrivals_s[index])
        replica.send(arrivals_s[index], index)
    given_up = dict(replica.give_up(at_s))
    requests = replica.requests
    assert sorted(given_up) == [index for index in sent if requests.ended_s[index] == math.inf]
    for index, tokens in given_up.items():
        if requests.first_s[index] == math.inf:
            assert tokens == 0
        else:
            # One token with the first, and at most one more in each 10 ms since.
            assert 1 <= tokens < requests.answers[index]
            assert tokens <= 1 + (replica.now_s - requests.first_s[index]) / 0.01 + 1
