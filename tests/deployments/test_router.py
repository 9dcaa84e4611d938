import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.router import Load, choose


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        pytest.param({}, None, id="none is ready"),
        pytest.param({"a": 0}, "a", id="the only one"),
        pytest.param({"a": 10**9}, "a", id="the only one, however loaded"),
        pytest.param({"a": 5, "b": 4, "c": 6}, "b", id="the least loaded"),
        pytest.param({"b": 3, "a": 3}, "a", id="the first name among equals"),
        pytest.param({"a": 1, "c": 0, "b": 0}, "b", id="the first name among equally little"),
    ],
)
def test_the_next_request_goes_to(loads: dict[str, int], chosen: str | None) -> None:
    assert choose(Load(replica=name, outstanding_tokens=tokens) for name, tokens in loads.items()) == chosen


quick = settings(max_examples=100, deadline=None, derandomize=True)
some_loads = st.dictionaries(st.text(max_size=3), st.integers(0, 10**6), min_size=1, max_size=8)


@quick
@given(some_loads)
def test_never_a_replica_with_more_outstanding_tokens_than_another(loads: dict[str, int]) -> None:
    chosen = choose([Load(replica=name, outstanding_tokens=tokens) for name, tokens in loads.items()])
    assert chosen is not None
    assert loads[chosen] == min(loads.values())


@quick
@given(some_loads)
def test_the_order_of_the_replicas_does_not_matter(loads: dict[str, int]) -> None:
    listed = [Load(replica=name, outstanding_tokens=tokens) for name, tokens in loads.items()]
    assert choose(listed) == choose(reversed(listed))


@quick
@given(st.lists(st.integers(1, 4096), max_size=60), st.integers(1, 6))
def test_loads_never_drift_apart_by_more_than_one_request(sizes: list[int], replicas: int) -> None:
    loads = dict.fromkeys((f"r{index}" for index in range(replicas)), 0)
    for tokens in sizes:
        chosen = choose(Load(replica=name, outstanding_tokens=load) for name, load in loads.items())
        assert chosen is not None
        loads[chosen] += tokens
    assert max(loads.values()) - min(loads.values()) <= max(sizes, default=0)
