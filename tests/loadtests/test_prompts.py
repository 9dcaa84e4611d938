import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.prompts import Prompts, text_prompts, token_prompts

TOKENS, TEXT = token_prompts(1), text_prompts(1)


@given(request_id=st.integers(0, 10**6), tokens=st.one_of(st.integers(1, 40), st.integers(1, 400_000)))
@pytest.mark.parametrize(("prompts", "separator"), [(TOKENS, ","), (TEXT, " ")])
def test_a_prompt_is_as_long_as_asked(prompts: Prompts, separator: str, request_id: int, tokens: int) -> None:
    assert len(prompts.of(request_id, tokens).decode().split(separator)) == tokens


@given(tokens=st.integers(1, 300_000))
def test_ids_are_ordinary_ones_of_any_vocabulary(tokens: int) -> None:
    assert all(100 <= each < 1000 for each in json.loads(b"[" + TOKENS.of(3, tokens) + b"]"))


@given(one=st.integers(0, 10**8), other=st.integers(0, 10**8))
@pytest.mark.parametrize("prompts", [TOKENS, TEXT])
def test_no_two_prompts_share_a_prefix_worth_caching(prompts: Prompts, one: int, other: int) -> None:
    if one != other:
        assert prompts.of(one, 5) != prompts.of(other, 5)


def test_equal_seeds_give_equal_prompts_and_others_do_not() -> None:
    assert token_prompts(1).of(8, 500) == TOKENS.of(8, 500)
    assert token_prompts(2).of(8, 500) != TOKENS.of(8, 500)
