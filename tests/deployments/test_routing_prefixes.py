from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from routing_builders import quick

from deployments.routing import PrefixIndex, block_hashes

PLENTY = 10**9


def hashes(tokens: Sequence[int], salt: str = "") -> tuple[int, ...]:
    return block_hashes(tokens, salt, block_tokens=4)


def index_of(bound: int = 100, **noted: Sequence[int]) -> PrefixIndex:
    index = PrefixIndex(block_tokens=4, max_blocks_per_replica=bound)
    for replica, tokens in noted.items():
        index.note(replica, hashes(tokens), PLENTY)
    return index


TEN = list(range(10))


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        pytest.param(TEN, 8, id="full blocks only"),
        pytest.param([*TEN[:6], 0, 0], 4, id="up to the first difference"),
        pytest.param([9, *TEN[1:]], None, id="nothing after a difference at the beginning"),
        pytest.param(TEN[4:], None, id="the same block elsewhere is another"),
        pytest.param(TEN[:3], None, id="shorter than a block"),
        pytest.param([*TEN, *TEN], 8, id="a longer prompt"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_a_replica_that_was_given_ten_tokens_holds(prompt: list[int], tokens: int | None) -> None:
    assert index_of(a=TEN).cached_tokens(hashes(prompt)) == ({} if tokens is None else {"a": tokens})


def test_an_adapter_or_a_salt_shares_nothing() -> None:
    index = index_of(a=TEN)
    assert index.cached_tokens(hashes(TEN, salt="adapter-1")) == {}


def test_the_bound_of_a_replica_is_its_kv_cache() -> None:
    index = PrefixIndex(block_tokens=4, max_blocks_per_replica=100)
    index.note("small", hashes(range(40)), kv_tokens=23)
    index.note("large", hashes(range(40)), kv_tokens=PLENTY)
    assert index.cached_tokens(hashes(range(40))) == {"small": 20, "large": 40}


def test_what_was_used_last_stays_and_ends_go_first() -> None:
    index = index_of(bound=6, a=range(16))
    index.note("a", hashes(range(100, 108)), PLENTY)
    index.note("a", hashes([*range(8), 50, 50, 50, 50]), PLENTY)
    index.note("a", hashes(range(200, 208)), PLENTY)
    assert index.cached_tokens(hashes(range(16))) == {"a": 8}
    assert index.cached_tokens(hashes(range(100, 108))) == {"a": 4}


class Fleet(RuleBasedStateMachine):
    """Compared with a list of all prompts each replica was given since it was last forgotten."""

    prompts = st.lists(st.integers(0, 1), max_size=40)
    replicas = st.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(block_tokens=2, max_blocks_per_replica=8)
        self.given: dict[str, list[tuple[int, ...]]] = {}

    @rule(replica=replicas, prompt=prompts, kv_tokens=st.integers(0, 30))
    def note(self, replica: str, prompt: list[int], kv_tokens: int) -> None:
        chain = block_hashes(prompt, block_tokens=2)
        self.index.note(replica, chain, kv_tokens)
        self.given.setdefault(replica, []).append(chain)
        kept = min(8, kv_tokens // 2, len(chain)) * 2
        assert self.index.cached_tokens(chain).get(replica, 0) == kept

    @precondition(lambda self: self.given)
    @rule(replica=replicas)
    def forget(self, replica: str) -> None:
        self.index.forget(replica)
        self.given.pop(replica, None)

    @rule(prompt=prompts)
    def look(self, prompt: list[int]) -> None:
        chain = block_hashes(prompt, block_tokens=2)
        for replica, tokens in self.index.cached_tokens(chain).items():
            assert 0 < tokens <= len(prompt)
            assert any(chain[: tokens // 2] == other[: tokens // 2] for other in self.given[replica])

    @invariant()
    def is_bounded(self) -> None:
        assert len(self.index) <= 8 * len(self.given)

    @invariant()
    def holds_whole_prefixes(self) -> None:
        for replica, chains in self.given.items():
            for chain in chains:
                held = self.index.cached_tokens(chain).get(replica, 0) // 2
                for length in range(1, len(chain) + 1):
                    found = self.index.cached_tokens(chain[:length]).get(replica, 0) // 2
                    assert found == min(held, length)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=30, derandomize=True)


@quick
@given(st.lists(st.integers(0, 200_000), max_size=60), st.lists(st.integers(0, 200_000), max_size=60))
def test_two_prompts_share_as_many_hashes_as_whole_blocks(a: list[int], b: list[int]) -> None:
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    shared = sum(x == y for x, y in zip(hashes(a), hashes(b), strict=False))
    assert shared == min(common, len(a), len(b)) // 4
