"""Invented answers: the token at a position depends on the prompt, the seed and the position, and on nothing else.

So an answer that moves to another replica after any token goes on there as if nothing had happened, and two runs can be
compared token by token. The text means nothing.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

_MASK = 2**64 - 1
_STRIDE = 0x9E3779B97F4A7C15
_LENGTH_POSITION = _MASK  # a position no token has: the length must not depend on a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """What may end an answer: `most_tokens` in any case, its own length unless `end_token` is None.

    An answer that ends by itself has more than `least_tokens` tokens. `never` are tokens that would end it too early.
    """

    most_tokens: int
    least_tokens: int = 0
    end_token: int | None = None
    never: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer: `tokens` in all, the last of which is `end_token` unless that is None (the answer is then cut)."""

    key: int
    vocabulary: int
    tokens: int
    end_token: int | None
    never: frozenset[int]

    def token_at(self, position: int) -> int:
        """The token at an output position, from 0 to `tokens` - 1."""
        if self.end_token is not None and position == self.tokens - 1:
            return self.end_token
        token = _mixed(self.key + position * _STRIDE) % self.vocabulary
        while token in self.never:
            token = (token + 1) % self.vocabulary
        return token


def answer_to(
    prompt: Sequence[int], seed: int | None, stops: Stops, *, vocabulary: int, mean_tokens: float | None
) -> Answer:
    """The answer to a prompt.

    With `mean_tokens` answers end by themselves, after exponentially distributed lengths of that mean, where `stops`
    has an end token; without, they are as long as they may be.

    Raises:
        ValueError: every token of the vocabulary is one that would end the answer.
    """
    if len(stops.never) >= vocabulary and stops.never.issuperset(range(vocabulary)):
        raise ValueError(f"all {vocabulary} tokens of the vocabulary are stop tokens")
    key = _key(prompt, seed or 0)
    own = math.inf
    if mean_tokens is not None and stops.end_token is not None:
        uniform = (_mixed(key + _LENGTH_POSITION * _STRIDE) + 1) / 2**64
        # An EOS is possible only behind min_tokens others (vllm/v1/sample/logits_processor/builtin.py).
        own = max(stops.least_tokens + 1, math.ceil(-math.log(uniform) * mean_tokens))
    return Answer(
        key=key,
        vocabulary=vocabulary,
        tokens=int(min(own, stops.most_tokens)),
        end_token=stops.end_token if own <= stops.most_tokens else None,
        never=stops.never,
    )


def _key(prompt: Sequence[int], seed: int) -> int:
    digest = blake2b(array("q", prompt).tobytes(), digest_size=8, key=(seed & _MASK).to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def _mixed(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): neighbours become unrelated 64-bit numbers."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
