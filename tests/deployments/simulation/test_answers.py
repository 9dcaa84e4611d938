from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.simulation.answers import Answer, Stops, answer_to

EOS = 2


def answer(
    prompt: list[int] | None = None, seed: int | None = None, *, mean: float | None = None, **stops: Any
) -> Answer:
    given_stops = Stops(**({"most_tokens": 50, "end_token": EOS, "never": frozenset({EOS})} | stops))
    return answer_to(prompt or [5, 6, 7], seed, given_stops, vocabulary=100, mean_tokens=mean)


def text(whole: Answer) -> list[int]:
    return [whole.token_at(position) for position in range(whole.tokens)]


def test_the_same_prompt_and_seed_give_the_same_answer_whatever_bounds_it() -> None:
    assert text(answer(seed=3)) == text(answer(seed=3))
    assert text(answer())[:10] == text(answer(most_tokens=10))
    assert text(answer()) == text(answer(seed=0))


@pytest.mark.parametrize("other", [answer([5, 6, 8]), answer([5, 6]), answer(seed=1), answer(seed=-1)])
def test_another_prompt_or_seed_gives_another_answer(other: Answer) -> None:
    assert text(other) != text(answer())


@given(st.lists(st.integers(0, 99), min_size=1), st.sets(st.integers(0, 99), max_size=99))
def test_no_token_ends_an_answer_too_early(prompt: list[int], never: set[int]) -> None:
    tokens = text(answer(prompt, never=frozenset(never), end_token=None))
    assert not never & set(tokens)
    assert all(0 <= token < 100 for token in tokens)


def test_tokens_are_spread_over_the_vocabulary() -> None:
    tokens = text(answer(most_tokens=2000))
    assert len(set(tokens)) == 99
    assert max(tokens.count(token) for token in set(tokens)) < 60


def test_answers_end_by_themselves_after_the_mean_length_asked_for() -> None:
    answers = [answer([number], mean=20, most_tokens=10_000) for number in range(2000)]
    mean = sum(each.tokens for each in answers) / len(answers)
    assert 18.5 < mean < 22.5  # of whole tokens: half a token above 20, and 2,000 of them are within 1.5
    assert all(text(each)[-1] == EOS for each in answers[:50])
    assert all(EOS not in text(each)[:-1] for each in answers[:50])


@pytest.mark.parametrize(
    ("stops", "tokens", "end"),
    [
        ({"most_tokens": 1}, 1, None),  # cut
        ({"least_tokens": 40}, 41, EOS),  # an EOS may only come behind the 40
        ({"end_token": None}, 50, None),
    ],
)
def test_what_bounds_an_answer_that_would_end_after_a_few_tokens(
    stops: dict[str, Any], tokens: int, end: int | None
) -> None:
    bounded = answer(mean=3, **stops)
    assert 1 < answer(mean=3).tokens < 40
    assert (bounded.tokens, bounded.end_token) == (tokens, end)


def test_a_vocabulary_of_stop_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="all 100 tokens of the vocabulary are stop tokens"):
        answer(never=frozenset(range(100)))
