"""One request from its arrival to its end, as an ingress keeps it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deployments.peer import Frames, Peer
from deployments.routing import Arrival

SUSPECT_AFTER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as the link sees it.

    ``encode(wire_id, token_ids)`` makes its message: under this id, to continue after these token ids. ``unmovable``
    says why its continuation elsewhere would not be exact, None when it would. ``salt`` separates prompts that share no
    KV cache though their tokens are equal.
    """

    request_id: str
    encode: Callable[[str, Sequence[int]], Frames]
    prompt_token_ids: Sequence[int]
    max_tokens: int
    priority: int = 0
    salt: str = ""
    unmovable: str | None = None


@dataclass(slots=True)
class Stream:
    """One request from its arrival to its end. It has no ``peer`` while it is held."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    peer: Peer | None = None
    wire_id: str = ""
    sendings: int = 0
    messages_before: int = 0  # those of the replica when this was sent
    deaths: int = 0
    give_up_at_s: float = 0.0

    def next_wire_id(self) -> str:
        """Another one for each sending, so that late outputs of an earlier one are known by it."""
        return f"{self.request.request_id}~{self.sendings}" if self.sendings else self.request.request_id

    def arrival(self) -> Arrival:
        """What the router is to know of it now."""
        return Arrival(
            request_id=self.next_wire_id(),
            prompt_tokens=len(self.request.prompt_token_ids) + len(self.token_ids),
            max_tokens=max(1, self.request.max_tokens - len(self.token_ids)),
            priority=self.request.priority,
        )

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what kills replicas: ``SUSPECT_AFTER`` have died with it aboard."""
        return self.deaths >= SUSPECT_AFTER
