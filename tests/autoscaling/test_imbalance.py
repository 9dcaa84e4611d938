"""One replica with a queue while the others have room: seen, said, and neither demand nor a doubt of the model."""

from dataclasses import replace

import pytest
from policy_builders import TIMES, TP2, TP4, Analytic, Play, demand, fleet, observation, pools, rules

from autoscaling.observation import Observation, PoolLoad, ReplicaLoad
from autoscaling.policy.decide import decide
from autoscaling.policy.imbalance import imbalance
from autoscaling.policy.memory import Memory
from placement import Shape

RULES = rules(tpot_ms=200, ttft_ms=2000)
LOPSIDED = ((8, 40), (8, 0))  # running and waiting of each replica


def pool(shape: Shape, *each: tuple[float, float]) -> PoolLoad:
    loads = tuple(
        ReplicaLoad(replica=f"{shape}-{number}", running=running, waiting=waiting, kv_usage=0.97)
        for number, (running, waiting) in enumerate(each)
    )
    running, waiting = (sum(values) for values in zip(*each, strict=True))
    return PoolLoad(
        shape=shape, replicas=len(each), running=running, waiting=waiting, kv_usage=0.5, requests_per_s=5, each=loads
    )


def seen(*loads: PoolLoad, rate: float = 13.0, **given: object) -> Observation:
    serving = {one.shape: one.replicas for one in loads}
    return replace(observation(1e4, demand(rate), fleet(serving), **given), pools=loads)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loads", "where"),
    [
        ((pool(TP2, *LOPSIDED),), "tp2-0"),
        ((pool(TP2, (8, 0)), pool(TP4, (30, 2), (30, 40))), "tp4-1"),
        ((pool(TP2, (8, 40)),), None),  # there is no other
        ((pool(TP2, (8, 40), (8, 30)),), None),  # all are full
        ((pool(TP2, (8, 40), (8, 0), (8, 2)),), None),
        ((pool(TP2, (8, 5), (8, 0)),), None),  # a few wait by chance
        ((pool(TP2, (200, 15), (200, 0)),), None),  # for the next step
        ((replace(pool(TP2, *LOPSIDED), each=()),), None),  # nobody says which
        ((), None),
    ],
)
def test_one_replica_has_a_queue_and_no_other(loads: tuple[PoolLoad, ...], where: str | None) -> None:
    found = imbalance(seen(*loads))
    assert (found and found.load.replica) == where


def test_a_queue_at_one_replica_is_no_demand_for_more_and_the_hold_says_so() -> None:
    """The same 40 requests, if they wait at both, want more replicas."""
    lopsided, everywhere = (
        decide(seen(pool(TP2, *loads), rate=20.5), Memory(), RULES, Analytic(), TIMES)[0]
        for loads in (LOPSIDED, ((8, 20), (8, 20)))
    )

    assert (lopsided.kind, lopsided.cause) == ("hold", "cheapest")
    assert lopsided.reason.endswith(
        "Of 40 requests that wait 40 do on replica tp2-0 (tp2, 8 running, 97% of its KV cache in use) while the others "
        "have room: neither replicas nor another cut cure that."
    )
    assert everywhere.cause == "not-yet"
    assert "20.8 are to be served now (38 requests wait)" in everywhere.reason


def test_what_a_replica_in_trouble_misses_is_not_held_against_its_shape() -> None:
    play = Play(lambda now_s: demand(13), pools("2 x tp2"), RULES, seen={"attainment": 0.6}).until(900)
    assert play.acts, "a fleet that misses the SLO evenly is doubted"

    memory = Memory()
    for tick in range(60):
        at_s = 1e4 + 15 * tick
        look = replace(seen(pool(TP2, *LOPSIDED), attainment=0.6), at_s=at_s)
        decision, memory = decide(look, memory, RULES, Analytic(), TIMES)
        assert (decision.kind, memory.doubts) == ("hold", {})


def test_a_fleet_with_too_little_says_how_long_requests_wait() -> None:
    loads = pool(TP2, (8, 20), (8, 20))
    decision, _ = decide(seen(loads, rate=26, queue_s=2.9, ttft_s=3.4, tpot_s=0.05), Memory(), RULES, Analytic(), TIMES)
    assert "(38 requests wait; p95 of the wait is 2.9 s, of the TTFT 3.4 s)" in decision.reason
