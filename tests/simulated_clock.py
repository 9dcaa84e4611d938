"""A clock that moves only by what is slept."""

import asyncio
from dataclasses import dataclass


@dataclass(slots=True)
class Clock:
    s: float = 0.0

    def now_s(self) -> float:
        return self.s

    async def sleep(self, duration_s: float) -> None:
        self.s += duration_s
        await asyncio.sleep(0)
