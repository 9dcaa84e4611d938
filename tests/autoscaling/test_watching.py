"""The loop with nothing made up but Prometheus's answers: real settings, reading, cost model, policy, control API."""

from pathlib import Path

from autoscaling_builders import model
from control_builders import MODEL
from loop_builders import TICK_S, Running, World, world
from prometheus_answers import Answers, Value
from reading_builders import BUSY

from autoscaling.live.steward import Watched
from autoscaling.live.watching import watched
from autoscaling.observing.queries import Answer, Failure, Moment, Span
from autoscaling.settings.settings import parse_settings
from placement import cluster_of

NAME = "meta-llama/Llama-3.1-8B"
SETTINGS = f"""
models:
  - model: {MODEL}
    source: {NAME}
    slo: {{ttft: 1s, tpot: 30ms, percentile: p90}}
    shapes: [tp1, tp2, tp4]
    forecast: false
    repartition: REPARTITION
"""


class Traffic:
    """Prometheus, with a rate of requests of 300 tokens in and 100 out that is set from outside."""

    def __init__(self, here: World, rate: float) -> None:
        self._here, self.rate = here, rate
        self.failure: Failure | None = None

    def __call__(self, question: Moment | Span) -> Answer | Failure:
        share = self.rate / 4.0
        per_request = {"arrivals", "input_sum", "output_sum", "computed", "hits"}
        values: dict[str, Value] = {
            name: value * share if name in per_request and isinstance(value, float) else value
            for name, value in BUSY.items()
        }
        replicas = self._here.fleet.views[MODEL].replicas
        each = {(one.name, one.shape) for one in replicas}
        shapes = {one.shape for one in replicas}
        values |= {
            "newest": self._here.now_s - 5,
            "running": dict.fromkeys(each, 2.0),
            "waiting": dict.fromkeys(each, 0.0),
            "kv_usage": dict.fromkeys(each, 0.1),
            "sent": dict.fromkeys(shapes, self.rate),
            "preempted": None,
            "pool_ttft": dict.fromkeys(shapes, 0.1),
            "pool_tpot": dict.fromkeys(shapes, 0.01),
        }
        table = Answers(values=values, points={"arrivals": lambda at_s: self.rate}, failure=self.failure)
        return table(question)


def real(ask: Traffic, *, repartition: bool) -> Watched:
    settings = parse_settings(SETTINGS.replace("REPARTITION", str(repartition).lower()))
    return watched(
        settings.models[0], model=model(NAME), hardware=cluster_of("dgx-h100"), ask=ask, scrape_interval_s=TICK_S
    )


def test_more_demand_is_answered_with_replicas_and_the_ledger_has_what_was_weighed(tmp_path: Path) -> None:
    here = world(tmp_path)
    traffic = Traffic(here, 5.0)
    with Running(here, watched=[real(traffic, repartition=False)]) as running:
        running.tick(10)
        assert not here.asked
        traffic.rate = 60.0
        running.tick(20, serving=True)
        (entry, *_) = [one for one in running.ledger.entries.values() if one.decision.kind != "hold"]
    assert entry.state == "acted"
    assert here.asked[0]["tp2"] > 1
    assert set(here.asked[0]) == {"tp2"}
    hold = next(option for option in entry.decision.options if option.kind == "hold")
    assert "requests/s" in hold.why
    assert here.fleet.entries[0].reason.startswith(f"autoscaler, decision {entry.number}: ")


def test_where_a_narrower_shape_is_enough_it_is_taken(tmp_path: Path) -> None:
    here = world(tmp_path)
    with Running(here, watched=[real(Traffic(here, 5.0), repartition=True)]) as running:
        running.tick(20)
    assert here.asked == [{"tp1": 1}]


def test_a_prometheus_that_is_away_is_written_down_and_nothing_is_done(tmp_path: Path) -> None:
    here = world(tmp_path)
    traffic = Traffic(here, 60.0)
    traffic.failure = Failure(kind="slow", why="it did not answer within 5 s.")
    with Running(here, watched=[real(traffic, repartition=True)]) as running:
        (entry,) = running.tick(10)
    assert (entry.decision.cause, entry.decision.kind) == ("blind", "hold")
    assert "did not answer within 5 s" in entry.decision.reason
    assert not here.asked
