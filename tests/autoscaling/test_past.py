"""History and dispersion, from tables and from a real Prometheus that holds two weeks."""

import math

import numpy as np
import pytest
from prometheus_answers import Answers
from prometheus_traffic import END_S, PAST_INTERVAL_S, is_missing, old_rate

from autoscaling.observation import History
from autoscaling.observing.past import MAX_STEPS, dispersion, history
from autoscaling.observing.prometheus import Prometheus
from autoscaling.observing.queries import MAX_POINTS, Failure

NOW_S = 6_000_030.0  # half a minute after a step
FORTNIGHT_S = 14 * 86_400.0


def steady(since_s: float = 0.0) -> Answers:
    def after(value: float):  # type: ignore[no-untyped-def]
        return lambda at_s: value if at_s > since_s else None

    values = {"arrivals": 2.0, "answered": 1.9, "input_sum": 600.0, "output_sum": 100.0}
    return Answers(points={name: after(value) for name, value in values.items()})


def known(ask: Answers | Prometheus, **given: object) -> History:
    found = history(ask, model="m", now_s=NOW_S, **given)  # type: ignore[arg-type]
    assert isinstance(found, History)
    return found


def test_two_weeks_of_minutes_are_asked_for_in_pieces_that_prometheus_allows() -> None:
    ask = steady()
    found = known(ask)
    assert (found.step_s, found.end_s) == (60.0, 6_000_000.0)
    assert len(found.requests_per_s) == MAX_STEPS > MAX_POINTS
    assert len(ask.asked) == 2


@pytest.mark.parametrize(("days", "step_s"), [(1, 60), (14, 60), (15, 120), (28, 120), (60, 300)])
def test_longer_histories_have_longer_steps(days: int, step_s: float) -> None:
    found = known(steady(), length_s=days * 86_400.0)
    assert found.step_s == step_s
    assert len(found.requests_per_s) == days * 86_400 / step_s
    assert found.end_s % step_s == 0


def test_it_begins_where_anything_is_known() -> None:
    found = known(steady(since_s=NOW_S - 1000))
    assert len(found.requests_per_s) == 17
    assert len(known(Answers()).requests_per_s) == 0


def test_with_an_earlier_answer_only_what_is_new_is_asked_for() -> None:
    before = history(steady(), model="m", now_s=NOW_S - 300, length_s=3600)
    assert isinstance(before, History)
    ask = steady()
    found = known(ask, length_s=3600.0, known=before)
    whole = known(steady(), length_s=3600.0)
    assert [(span.start_s, span.end_s) for span in ask.asked] == [(5_999_760.0, 6_000_000.0)]  # type: ignore[union-attr]
    for name in ("requests_per_s", "answered_per_s", "input_tokens_per_s", "output_tokens_per_s"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.end_s == whole.end_s


@pytest.mark.parametrize("later_s", [0, 30, 7200, 86_400])
def test_asking_again_later_gives_what_asking_afresh_does(later_s: float) -> None:
    again = history(steady(), model="m", now_s=NOW_S + later_s, length_s=3600, known=known(steady(), length_s=3600.0))
    afresh = history(steady(), model="m", now_s=NOW_S + later_s, length_s=3600)
    assert isinstance(again, History)
    assert isinstance(afresh, History)
    assert again.end_s == afresh.end_s
    np.testing.assert_array_equal(again.requests_per_s, afresh.requests_per_s)


def test_a_step_without_a_sample_is_not_a_number_and_one_without_requests_has_no_tokens() -> None:
    quiet, lost = 5_999_940.0, 5_999_880.0
    ask = Answers(
        points={
            "arrivals": lambda at_s: {quiet: 0.0, lost: None}.get(at_s, 1.0),
            "input_sum": lambda at_s: None if at_s in (quiet, lost) else math.inf,
        }
    )
    found = known(ask, length_s=240.0)
    np.testing.assert_array_equal(found.requests_per_s, [1.0, np.nan, 0.0, 1.0])
    np.testing.assert_array_equal(found.input_tokens_per_s, [np.nan, np.nan, 0.0, np.nan])


def test_a_failure_stays_one() -> None:
    failure = Failure(kind="slow", why="it was")
    assert history(Answers(failure=failure), model="m", now_s=NOW_S) is failure
    assert dispersion(Answers(failure=failure), model="m", scraped_s=NOW_S) is failure


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (lambda at_s: 1.0, 0.0),  # like a clock
        (lambda at_s: 0.0, 1.0),  # nothing to go by
        (lambda at_s: 0.01, 1.0),
        (lambda at_s: None, 1.0),
        (lambda at_s: 1.0 if at_s > NOW_S - 200 else None, 1.0),  # too short
        (lambda at_s: (at_s - NOW_S + 3600) / 1800, 0.0),  # it rises
    ],
)
def test_what_is_no_burst_is_not_called_one(rate, expected: float) -> None:  # type: ignore[no-untyped-def]
    found = dispersion(Answers(points={"arrivals": rate}), model="m", scraped_s=NOW_S)
    assert found == pytest.approx(expected, abs=0.05)


# --- a real Prometheus ---


def test_two_weeks_out_of_a_real_prometheus(past_url: str) -> None:
    with Prometheus(past_url) as ask:
        found = history(ask, model="old", now_s=END_S + 20, scrape_interval_s=PAST_INTERVAL_S)
    assert isinstance(found, History)
    assert len(found.requests_per_s) == MAX_STEPS
    ends = found.end_s - 60.0 * np.arange(MAX_STEPS)[::-1]
    lost = np.isnan(found.requests_per_s)
    assert 57 <= lost.sum() <= 60  # an hour, less the steps that see a sample on each side of an edge
    assert all(is_missing(end_s) for end_s in ends[lost])
    near = np.array([any(is_missing(end_s + off) for off in (-120, 0, 120)) for end_s in ends])
    true = np.array([old_rate(end_s) for end_s in ends])
    np.testing.assert_allclose(found.requests_per_s[~near], true[~near], rtol=0.01)
    np.testing.assert_allclose(found.answered_per_s[~near], 0.9 * true[~near], rtol=0.01)
    np.testing.assert_allclose(found.input_tokens_per_s[~near], 300 * true[~near], rtol=0.01)
    np.testing.assert_allclose(found.output_tokens_per_s[~near], 50 * true[~near], rtol=0.01)


def test_neighbouring_steps_lose_no_request_between_them(past_url: str) -> None:
    """Their sum is what the counter rose by."""
    day = 1440
    with Prometheus(past_url) as ask:
        found = history(ask, model="old", now_s=END_S, length_s=86_400.0, scrape_interval_s=PAST_INTERVAL_S)
    assert isinstance(found, History)
    assert len(found.requests_per_s) == day
    rose = sum(old_rate(END_S - step * PAST_INTERVAL_S) * PAST_INTERVAL_S for step in range(2 * day))
    assert found.requests_per_s.sum() * 60 == pytest.approx(rose, rel=0.002)


@pytest.mark.parametrize(("model", "low", "high"), [("independent", 0.5, 1.7), ("bursty", 7.0, 19.0)])
def test_dispersion_out_of_a_real_prometheus(past_url: str, model: str, low: float, high: float) -> None:
    """1 and 12 in truth; within three standard errors of 60 windows."""
    with Prometheus(past_url) as ask:
        found = dispersion(ask, model=model, scraped_s=END_S, scrape_interval_s=15.0)
    assert isinstance(found, float)
    assert low < found < high
