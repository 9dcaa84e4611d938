"""Which replica holds how much of a prompt, as far as this ingress knows: from the prompts it has sent there.

As llm-d's approximate prefix index (llm-d.ai, architecture/advanced/kv-management/prefix-cache-aware-routing): a chain
of block hashes, and for each replica those it was given last. Each list is as long as that replica's KV cache, since
that is what makes the engine forget.
"""

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 32
MAX_BLOCKS_PER_REPLICA = 16_384  # half a million tokens at 32 each


def block_hashes(token_ids: Sequence[int], salt: str = "", block_tokens: int = BLOCK_TOKENS) -> tuple[int, ...]:
    """Hash each full block together with everything before it.

    ``salt`` separates what shares no KV though the tokens are equal: the adapter, vLLM's ``cache_salt``. The hashes
    hold within one process. Somebody who finds collisions (it is Python's tuple hash) misleads the router about a
    prompt of their own, never the engine, which hashes for itself.
    """
    tokens = tuple(token_ids)
    parent = hash(salt)
    hashes = []
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        parent = hash((parent, tokens[start : start + block_tokens]))
        hashes.append(parent)
    return tuple(hashes)


class PrefixIndex:
    """The blocks each replica was given, the latest ones, within a bound. Takes prompts as `block_hashes`.

    A block is always younger than those that follow it in a prompt: prompts are noted from their end. So the oldest is
    always the end of one, a replica that holds a block holds all before it, and a search may halve.
    """

    def __init__(self, block_tokens: int = BLOCK_TOKENS, max_blocks_per_replica: int = MAX_BLOCKS_PER_REPLICA) -> None:
        self._block_tokens = block_tokens
        self._max_blocks = max_blocks_per_replica
        self._held: dict[str, OrderedDict[int, None]] = {}

    def __len__(self) -> int:
        """Blocks of all replicas."""
        return sum(map(len, self._held.values()))

    def cached_tokens(self, hashes: Sequence[int]) -> dict[str, int]:
        """By replica, the tokens of the prompt it holds; replicas that hold none are left out."""
        if not hashes:
            return {}
        return {
            replica: _held_blocks(held, hashes) * self._block_tokens
            for replica, held in self._held.items()
            if hashes[0] in held
        }

    def note(self, replica: str, hashes: Sequence[int], kv_tokens: int) -> None:
        """Remember that the replica was given the prompt; ``kv_tokens`` is what its KV cache holds in all."""
        held = self._held.setdefault(replica, OrderedDict())
        room = min(self._max_blocks, kv_tokens // self._block_tokens)
        for block in reversed(hashes[:room]):
            held[block] = None
            held.move_to_end(block)
        while len(held) > room:
            held.popitem(last=False)

    def forget(self, replica: str) -> None:
        """Drop what is known of a replica that has gone, or begun anew."""
        self._held.pop(replica, None)


def _held_blocks(held: OrderedDict[int, None], hashes: Sequence[int]) -> int:
    low, high = 1, len(hashes)
    while low < high:
        middle = (low + high + 1) // 2
        if hashes[middle - 1] in held:
            low = middle
        else:
            high = middle - 1
    return low
