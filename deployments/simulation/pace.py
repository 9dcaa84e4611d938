"""The time that simulated steps take on the clock of this machine. The clock and the wait are arguments."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

# Waits are inexact and a process may pause: so much is made up for by steps that are not waited for.
MAX_LAG_S = 1.0


@dataclass(slots=True, kw_only=True)
class Pace:
    """Steps one after the other, each `scale` times faster than its duration says.

    Each ends so long after the end of the last one, not after the work that this machine had with it.
    """

    scale: float
    now_s: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    _due_s: float = -math.inf

    def restart(self) -> None:
        """The next step begins now, as there was nothing to do."""
        self._due_s = self.now_s()

    def begin(self, duration_s: float) -> bool:
        """Begin a step; False when this machine is too slow for it by more than can be made up for."""
        earliest_s = self.now_s() - MAX_LAG_S
        self._due_s += duration_s / self.scale
        if self._due_s >= earliest_s:
            return True
        self._due_s = earliest_s
        return False

    async def end(self) -> None:
        """Wait for the end of the step. It stays the same when this is cancelled and called again."""
        await self.sleep(max(0.0, self._due_s - self.now_s()))
