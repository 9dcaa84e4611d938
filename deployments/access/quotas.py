"""How much one key may ask for: buckets that hold a minute's worth and fill continuously.

Tokens are paid afterwards: a request takes what its body suggests, and gives back or adds what it has really used when
that is known. So a bucket may be overdrawn, by what the requests of one moment use, and then stays closed until it is
filled again. A prompt counts once, as in the `usage` of the answer, however many choices or beams there are of it.
Each ingress counts for itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from deployments.access.keys import KeyRecord
from deployments.metrics.counting import PromptTokens

MINUTE_S = 60.0
BYTES_PER_TOKEN = 4  # of a body: about that of English text, and of JSON around it


class Bucket:
    """`per_minute` units a minute, as many at once. It begins full."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until `amount` is there; 0 when it is. More than fits waits for a full bucket."""
        self._fill(now_s)
        missing = min(amount, self.per_minute) - self._level
        return max(0.0, missing) * MINUTE_S / self.per_minute

    def take(self, amount: float, now_s: float) -> None:
        """Take it, there or not; a negative amount is given back."""
        self._fill(now_s)
        self._level = min(self._level - amount, float(self.per_minute))

    def _fill(self, now_s: float) -> None:
        gained = max(0.0, now_s - self._at_s) * self.per_minute / MINUTE_S
        self._level = min(self._level + gained, float(self.per_minute))
        self._at_s = now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class OverQuota:
    """A request that has to wait. `limit` is in words."""

    limit: str
    wait_s: float

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, as the header has them; never 0."""
        return max(1, math.ceil(self.wait_s))


@dataclass(slots=True)
class _Account:
    record: KeyRecord
    requests: Bucket | None
    tokens: Bucket | None


@dataclass(slots=True, weakref_slot=True, eq=False)
class Charge:
    """What one HTTP request has taken from its key's tokens. It lives as long as the request."""

    tokens: Bucket | None
    reserved_tokens: float
    now_s: Callable[[], float]
    used_tokens: int = field(default=0)
    prompts: PromptTokens = field(default_factory=PromptTokens)

    def use_prompt(self, token_ids: Sequence[int]) -> None:
        """Count a prompt that is asked for, as the metrics of the key do (`Journey.input_tokens`)."""
        self._take(self.prompts.more(token_ids))

    def use(self, tokens: int) -> None:
        """Count tokens that were generated, whenever that is known."""
        self.prompts.generated(tokens)
        self._take(tokens)

    def _take(self, tokens: int) -> None:
        self.used_tokens += tokens
        if self.tokens is not None:
            self.tokens.take(tokens, self.now_s())

    def give_back(self) -> None:
        """The request is over: what it has used is counted, so what was reserved for it is free."""
        if self.tokens is not None:
            self.tokens.take(-self.reserved_tokens, self.now_s())
            self.reserved_tokens = 0.0


class Quotas:
    """The accounts of all keys that were seen; a key with other limits than before gets a new one."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._accounts: dict[str, _Account] = {}

    def admit(self, key: KeyRecord, body_bytes: int) -> Charge | OverQuota:
        """Let one request through and charge its key, or say how long it has to wait."""
        now_s = self._now_s()
        account = self._account(key, now_s)
        # A body with an image has far more bytes than tokens, so however large it is, a full bucket is enough for it.
        estimate = min(body_bytes // BYTES_PER_TOKEN + 1.0, key.tokens_per_minute or math.inf)
        asked: Mapping[str, tuple[Bucket | None, float]] = {
            "requests": (account.requests, 1.0),
            "tokens": (account.tokens, estimate),
        }
        for unit, (bucket, amount) in asked.items():
            if bucket is not None and (wait_s := bucket.wait_s(amount, now_s)) > 0:
                return OverQuota(limit=f"{bucket.per_minute} {unit} per minute", wait_s=wait_s)
        for bucket, amount in asked.values():
            if bucket is not None:
                bucket.take(amount, now_s)
        return Charge(account.tokens, estimate, self._now_s)

    def _account(self, key: KeyRecord, now_s: float) -> _Account:
        account = self._accounts.get(key.id)
        if account is None or _limits(account.record) != _limits(key):
            account = _Account(key, _bucket(key.requests_per_minute, now_s), _bucket(key.tokens_per_minute, now_s))
            self._accounts[key.id] = account
        return account


def _limits(key: KeyRecord) -> tuple[int | None, int | None]:
    return key.requests_per_minute, key.tokens_per_minute


def _bucket(per_minute: int | None, now_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now_s)


# The request that is being answered, for the engine far below it: it alone knows how many tokens there were.
current_charge: ContextVar[Charge | None] = ContextVar("current_charge", default=None)
