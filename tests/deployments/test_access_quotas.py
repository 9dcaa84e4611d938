import pytest
from access_builders import Hands, made_key
from hypothesis import given
from hypothesis import strategies as st

from deployments.access.quotas import Bucket, Charge, OverQuota, Quotas

steps = st.lists(st.tuples(st.integers(1, 50), st.floats(0, 90)), max_size=60)


@given(per_minute=st.integers(1, 100), steps=steps)
def test_no_minute_has_more_than_twice_what_it_may(per_minute: int, steps: list[tuple[int, float]]) -> None:
    """A bucket holds one minute's worth, so any minute begins with at most that and gets as much."""
    clock = Hands(0.0)
    bucket = Bucket(per_minute, clock())
    taken: list[tuple[float, int]] = []
    for amount, pause_s in steps:
        clock.s += pause_s
        if amount <= per_minute and bucket.wait_s(amount, clock()) == 0:
            bucket.take(amount, clock())
            taken.append((clock(), amount))
    for end_s, _ in taken:
        assert sum(amount for at_s, amount in taken if end_s - 60 < at_s <= end_s) <= 2 * per_minute + 1e-6


@given(per_minute=st.integers(1, 1000), amount=st.integers(1, 3000), taken=st.integers(0, 3000))
def test_who_waits_as_long_as_told_is_let_in(per_minute: int, amount: int, taken: int) -> None:
    bucket = Bucket(per_minute, 0.0)
    bucket.take(taken, 0.0)
    wait_s = bucket.wait_s(amount, 0.0)
    assert wait_s < 0.01 or bucket.wait_s(amount, wait_s * 0.9) > 0
    assert bucket.wait_s(amount, wait_s + 1e-6) == pytest.approx(0, abs=1e-6)


def test_requests_are_counted_key_by_key() -> None:
    clock = Hands()
    quotas = Quotas(clock)
    one, other = (made_key(name, requests_per_minute=2)[1] for name in ("one", "other"))
    assert [type(quotas.admit(one, 0)) for _ in range(3)] == [Charge, Charge, OverQuota]
    assert isinstance(quotas.admit(other, 0), Charge)
    refused = quotas.admit(one, 0)
    assert isinstance(refused, OverQuota)
    assert (refused.limit, refused.retry_after_s) == ("2 requests per minute", 30)
    clock.s += refused.retry_after_s
    assert isinstance(quotas.admit(one, 0), Charge)


def test_a_refused_request_costs_nothing() -> None:
    clock = Hands()
    quotas = Quotas(clock)
    key = made_key(requests_per_minute=1, tokens_per_minute=1000)[1]
    assert isinstance(quotas.admit(key, 0), Charge)
    for _ in range(1000):
        assert isinstance(quotas.admit(key, 0), OverQuota)
    clock.s += 60
    assert isinstance(quotas.admit(key, 4 * 900), Charge)


def test_tokens_are_estimated_from_the_body_and_settled_by_what_was_used() -> None:
    clock = Hands()
    quotas = Quotas(clock)
    key = made_key(tokens_per_minute=1000)[1]
    charge = quotas.admit(key, 4 * 600)
    assert isinstance(charge, Charge)
    assert isinstance(quotas.admit(key, 4 * 600), OverQuota)  # while it is not known what the first one uses
    charge.use(90)
    charge.use(10)
    charge.give_back()
    assert charge.used_tokens == 100
    assert isinstance(quotas.admit(key, 4 * 600), Charge)


def test_what_a_request_has_used_too_much_the_next_ones_wait_for() -> None:
    clock = Hands()
    quotas = Quotas(clock)
    key = made_key(tokens_per_minute=600)[1]
    charge = quotas.admit(key, 4)
    assert isinstance(charge, Charge)
    charge.use(1200)
    charge.give_back()
    refused = quotas.admit(key, 0)
    assert isinstance(refused, OverQuota)
    assert refused.limit == "600 tokens per minute"
    assert 60 <= refused.retry_after_s <= 61
    clock.s += refused.retry_after_s
    assert isinstance(quotas.admit(key, 0), Charge)


def test_a_body_larger_than_a_minute_needs_a_full_bucket_and_no_more() -> None:
    """An image in base64 has a thousand times more bytes than tokens."""
    clock = Hands()
    quotas = Quotas(clock)
    key = made_key(tokens_per_minute=1000)[1]
    charge = quotas.admit(key, 10**9)
    assert isinstance(charge, Charge)
    assert isinstance(quotas.admit(key, 10**9), OverQuota)
    charge.use(500)
    charge.give_back()
    assert isinstance(quotas.admit(key, 4 * 400), Charge)


def test_to_give_back_twice_brings_nothing() -> None:
    quotas = Quotas(Hands())
    key = made_key(tokens_per_minute=100)[1]
    charge = quotas.admit(key, 4 * 50)
    assert isinstance(charge, Charge)
    charge.use(80)
    charge.give_back()
    charge.give_back()
    assert isinstance(quotas.admit(key, 4 * 50), OverQuota)


def test_a_changed_limit_holds_at_once() -> None:
    quotas = Quotas(Hands())
    key = made_key(requests_per_minute=1)[1]
    quotas.admit(key, 0)
    assert isinstance(quotas.admit(key, 0), OverQuota)
    assert isinstance(quotas.admit(key.model_copy(update={"requests_per_minute": 5}), 0), Charge)
    assert isinstance(quotas.admit(key.model_copy(update={"requests_per_minute": None}), 0), Charge)


def test_without_limits_there_is_nothing_to_wait_for() -> None:
    quotas = Quotas(Hands())
    key = made_key()[1]
    assert all(isinstance(quotas.admit(key, 10**12), Charge) for _ in range(1000))
