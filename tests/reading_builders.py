"""A fleet and what Prometheus says of it when all is well, for the tests of readings."""

import math
from typing import Any

from placement_builders import cluster_of
from prometheus_answers import Answers, Value

from autoscaling.observation import Blind, Fleet, Observation
from autoscaling.observing import queries
from autoscaling.observing.reading import read
from placement import Shape, Slo

NOW_S = 6_000_000.0
TP2, TP4 = Shape(tp=2), Shape(tp=4)
SLO = Slo(ttft_s=1.0, tpot_s=0.05, percentile=0.9)
FLEET = Fleet(
    version=3,
    desired={TP2: 3, TP4: 1},
    serving={TP2: 3, TP4: 1},
    starting={},
    changing=False,
    cluster=cluster_of(8, 8),
)
REPLICAS = (("a", "tp2"), ("b", "tp2"), ("c", "tp2"), ("d", "tp4"))
GAUGES = ("running", "waiting", "kv_usage")
INF = math.inf
NAN = math.nan

# 4 requests/s arrive and are answered, all in time; prompts of 300 tokens, answers of 100.
BUSY: dict[str, Value] = {
    "arrivals": 4.0,
    "newest": NOW_S - 7,
    "samples": 4.0,
    "ingresses": 2.0,
    "refused": 0.0,
    "ttft": 0.4,
    "tpot": 0.03,
    "queue": 0.5,
    "ttft_buckets": {0.5: 4.0, 1.0: 4.0, 2.0: 4.0, INF: 4.0},
    "tpot_buckets": {0.05: 4.0, 0.1: 4.0, INF: 4.0},
    "running": dict(zip(REPLICAS, (2.0, 4.0, 3.0, 5.0), strict=True)),
    "waiting": dict(zip(REPLICAS, (0.0, 1.0, 0.0, 0.0), strict=True)),
    "kv_usage": dict(zip(REPLICAS, (0.1, 0.3, 0.2, 0.8), strict=True)),
    "sent": {"tp2": 3.0, "tp4": 1.0},
    "preempted": {"tp4": 0.5},
    "pool_ttft": {"tp2": 0.45, "tp4": 0.2},
    "pool_tpot": {"tp2": 0.035, "tp4": 0.01},
    "input_sum": 1200.0,
    "input_buckets": {200.0: 1.0, 500.0: 4.0, INF: 4.0},
    "output_sum": 400.0,
    "output_buckets": {100.0: 4.0, INF: 4.0},
    "computed": 900.0,
    "hits": 300.0,
}
NOTHING_FINISHED: dict[str, Value] = {
    "input_sum": 0.0, "input_buckets": {200.0: 0.0, INF: 0.0},
    "output_sum": 0.0, "output_buckets": {200.0: 0.0, INF: 0.0},
    "computed": 0.0, "hits": 0.0,
}  # fmt: skip
# As every series is when nobody asks anything: there, and still.
IDLE = BUSY | NOTHING_FINISHED | {
    "arrivals": 0.0, "ttft": None, "tpot": None, "queue": None,
    "ttft_buckets": {1.0: 0.0, INF: 0.0}, "tpot_buckets": {0.1: 0.0, INF: 0.0},
    "running": dict.fromkeys(REPLICAS, 0.0), "waiting": dict.fromkeys(REPLICAS, 0.0),
    "kv_usage": dict.fromkeys(REPLICAS, 0.0), "sent": {"tp2": 0.0, "tp4": 0.0}, "preempted": None,
    "pool_ttft": None, "pool_tpot": None,
}  # fmt: skip


def answers(**changes: Value) -> Answers:
    return Answers(values=BUSY | changes, points={"arrivals": lambda _: 4.0})


def reading(ask: queries.Ask, **given: Any) -> Observation | Blind:
    usual: dict[str, Any] = {"model": "acme/m", "slo": SLO, "fleet": FLEET, "now_s": NOW_S, "history_s": 3600.0}
    return read(ask, **(usual | given))


def seen(ask: queries.Ask, **given: Any) -> Observation:
    found = reading(ask, **given)
    assert isinstance(found, Observation), found
    return found
