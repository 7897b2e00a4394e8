"""Several streams of tokens that run at once, and the waiting for a moment in which all of them have got somewhere."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from services.common.types import DecodeEvent


class TokenStreams:
    """Arrival times of each stream, in seconds on the monotonic clock; tokens of one message came at once."""

    def __init__(self, count: int) -> None:
        self.arrivals: list[list[float]] = [[] for _ in range(count)]
        self._changed = asyncio.Event()
        self._has_ended = False

    async def follow(self, index: int, events: AsyncGenerator[DecodeEvent]) -> None:
        """Takes the times of one stream until it ends or the task is cancelled."""
        try:
            async for event in events:
                now = time.monotonic()
                self.arrivals[index] += [now for choice in event.choices for _ in choice.tokens]
                self._changed.set()
        finally:
            await events.aclose()
            self._has_ended = True
            self._changed.set()

    async def reach(self, counts: Sequence[int]) -> bool:
        """Waits until each stream has so many tokens; False where one ended before all had."""
        while any(len(times) < least for times, least in zip(self.arrivals, counts, strict=True)):
            if self._has_ended:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True
