"""Prompts of exact lengths that cost the client nothing: slices of one long tape of tokens, made once.

Every unit of a tape has four bytes (a token id of three digits and a comma, or a word of three letters and a space), so
that a prompt of n tokens is a slice of 4 * n - 1 bytes, and a request of 100,000 tokens holds up no other one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

# Ordinary tokens in every vocabulary of real use; special tokens often come first.
_TOKEN_IDS = tuple(map(str, range(100, 1000)))
# With the space before it, one token each in the vocabularies of GPT, Llama, Qwen and DeepSeek alike.
_TEXT = (
    "the and for not you are but all can had her was one our out day get has him his how man new now old see two way "
    "who boy did its let put say she too use war big end far few got run set sun top"
)
_UNIT_BYTES = 4
_WORDS = tuple(_TEXT[start : start + 3] for start in range(0, len(_TEXT), _UNIT_BYTES))
_TAPE_UNITS = 1 << 18
_NAME_UNITS = 5  # 48**5 requests have names of their own: 254 million


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Where the prompts of one run come from. Equal seeds give equal prompts, whatever the server."""

    units: Sequence[str]
    separator: str
    tape: bytes

    def of(self, request_id: int, tokens: int) -> bytes:
        """The prompt of one request, without brackets or quotes.

        It begins with the number of the request, so that no two prompts share a prefix that a cache could hold.
        """
        rng = random.Random(request_id)
        named = min(tokens, _NAME_UNITS)
        name = self.separator.join(self._digit(request_id, place) for place in range(named)).encode()
        rest = tokens - named
        if not rest:
            return name
        parts = [name]
        while rest:
            length = min(rest, _TAPE_UNITS // 2)
            start = rng.randrange(_TAPE_UNITS - length)
            parts.append(self.tape[start * _UNIT_BYTES : (start + length) * _UNIT_BYTES - 1])
            rest -= length
        return self.separator.encode().join(parts)

    def _digit(self, request_id: int, place: int) -> str:
        base = len(self.units)
        return self.units[request_id // int(base**place) % base]


def token_prompts(seed: int) -> Prompts:
    """Prompts of token ids, as vLLM's completions endpoint takes them: exactly as long as asked."""
    return _prompts(_TOKEN_IDS, ",", seed)


def text_prompts(seed: int) -> Prompts:
    """Prompts of short words, for chat: about one token each; the server's usage says how many they really were."""
    return _prompts(_WORDS, " ", seed)


def _prompts(units: Sequence[str], separator: str, seed: int) -> Prompts:
    tape = separator.join(random.Random(f"prompts of seed {seed}").choices(units, k=_TAPE_UNITS))
    return Prompts(units=units, separator=separator, tape=(tape + separator).encode())
