"""The PromQL: what a real Prometheus makes of each query."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_traffic import END_S

from autoscaling.observing import queries
from autoscaling.observing.prometheus import Prometheus
from autoscaling.observing.queries import ALL, Failure, Moment, Query, duration, joined, parted, quoted


def test_every_query_has_a_name_and_a_series_of_its_own_kind() -> None:
    assert len({query.name for query in ALL}) == len(ALL)
    for query in ALL:
        label = "model_name" if query.metric.startswith("vllm:") else "model"
        assert f"{label}=$model" in query.promql, query.name


def test_every_query_parses(past_url: str) -> None:
    with Prometheus(past_url) as ask:
        for query in ALL:
            found = ask(Moment(promql=query.text(model="nobody", window_s=60, percentile=0.99), at_s=END_S))
            assert found == (), f"{query.name}: {found}"


@pytest.mark.parametrize(
    "model",
    ["acme/tiny-1.5", 'old"} or archipelago_arrivals_total{model="old', "back\\slash", "two\nlines", "$model", "ü"],
)
def test_what_a_model_is_called_stays_inside_its_selector(past_url: str, model: str) -> None:
    """The Prometheus knows the model `old`, and none of these."""
    with Prometheus(past_url) as ask:
        assert ask(Moment(promql=joined(ALL, model=model, window_s=60, percentile=0.99), at_s=END_S)) == ()
        assert ask(Moment(promql=queries.ARRIVALS.text(model="old", window_s=60), at_s=END_S)) != ()


def test_what_runs_is_the_mean_over_the_window(past_url: str) -> None:
    """It is asked for at moments of all kinds, and must not depend on them."""
    with Prometheus(past_url) as ask:
        for before_s in (0.0, 3.0, 5.0):
            found = ask(Moment(promql=queries.RUNNING.text(model="swinging", window_s=60), at_s=END_S - before_s))
            assert not isinstance(found, Failure)
            assert [series.value for series in found] == [pytest.approx(6, abs=0.5)]


@given(text=st.text())
def test_a_quoted_name_is_read_back_as_it_was(text: str) -> None:
    inside = quoted(text)[1:-1]
    assert inside.replace("\\\\", "\0").replace('\\"', "").count('"') == 0
    assert "\n" not in inside
    assert (
        inside.replace("\\\\", "\0").replace("\\n", "\n").replace('\\"', '"').replace("\0", "\\") == text
        or "\0" in text
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(60, "60000ms"), (0.5, "500ms"), (1 / 3, "333ms"), (86_400, "86400000ms")]
)
def test_durations_are_whole_milliseconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_joined_answer_comes_apart_again(past_url: str) -> None:
    pairs = (
        Query(name="one", promql="vector(1)"),
        Query(name="two", promql='label_replace(vector(2), "le", "5", "", "")'),
    )
    with Prometheus(past_url) as ask:
        answer = ask(Moment(promql=joined(pairs, model="m", window_s=1), at_s=END_S))
    assert not isinstance(answer, Failure)
    parts = parted(answer)
    assert {name: [(found.value, found.labels.get("le")) for found in part] for name, part in parts.items()} == {
        "one": [(1.0, None)],
        "two": [(2.0, "5")],
    }


def test_what_is_empty_without_events_is_named_so() -> None:
    """The others are exported from the start: their absence is a fault, not an idle fleet."""
    missing = {query.name for query in queries.TICK if query.empty == "missing"}
    assert missing == {
        "arrivals", "newest", "samples", "ttft_buckets", "tpot_buckets",
        "input_sum", "input_buckets", "output_sum", "output_buckets",
    }  # fmt: skip
