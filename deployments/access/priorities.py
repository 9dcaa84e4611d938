"""Whose request goes first. As in vLLM a lower number does, and takes memory from those that run with a higher one."""

from contextvars import ContextVar

UNASKED = 0  # what a request has that names no priority
MOST = 100_000  # that a key may have, above 0 or below


def granted(asked: int, least: int) -> int:
    """What a request gets that asks for `asked`, where its key may have `least` or more.

    It is not refused: `priority` may also come in a header, vLLM itself lowers it by one for what follows a tool call,
    and a request that names none is under the same rule.
    """
    return max(asked, least)


# That of the key whose request is being answered; of anybody where no keys are asked for. For the engine far below.
current_least_priority: ContextVar[int] = ContextVar("current_least_priority", default=UNASKED)
