"""What the legs of one route bring, in the order in which it comes, until the pipeline takes it.

Bounded: a leg that finds it full waits, and gRPC's flow control holds its worker back. Knows nothing of workers.
"""

import asyncio
import contextlib

from services.common.types import ChoiceTokens
from services.frontend.merge import TokenMerge
from services.frontend.rules import Rules


class Arrivals:
    """Tokens, and the failure of a leg as its last word; merged by index with all that came over other routes."""

    def __init__(self, merge: TokenMerge, rules: Rules) -> None:
        self._merge = merge
        self._stall_timeout_s = rules.stall_timeout_s or None
        self._queue: asyncio.Queue[tuple[ChoiceTokens, ...] | Exception] = asyncio.Queue(rules.buffer_events)
        self._failure: Exception | None = None
        self._has_come = asyncio.Event()
        self._begins_well = False

    async def put(self, item: tuple[ChoiceTokens, ...] | Exception) -> None:
        """Takes what a leg brings; waits while there is no room."""
        await self._queue.put(item)
        if not self._has_come.is_set():
            self._begins_well = not isinstance(item, Exception)
            self._has_come.set()

    async def begin(self, timeout_s: float | None = None) -> bool | None:
        """Waits for the first thing to come; True where it is tokens, False a failure, None where time ran out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._has_come.wait()
                return self._begins_well
        return None

    async def next_tokens(self) -> list[ChoiceTokens]:
        """Waits until something has come and returns all that is new in it; may be empty after duplicates.

        Raises:
            TimeoutError: the stream has begun, and nothing came for the stall timeout.
            BatonError: a leg failed, or the legs do not fit together.
        """
        if self._failure is not None:
            raise self._failure
        # Once tokens have come, no worker has a good reason to be silent for long.
        async with asyncio.timeout(self._stall_timeout_s if self._merge.has_begun else None):
            arrived = [await self._queue.get()]
        while not self._queue.empty():
            arrived.append(self._queue.get_nowait())
        fresh: list[ChoiceTokens] = []
        for item in arrived:
            if isinstance(item, Exception):
                self._failure = item
                break
            fresh.extend(self._merge.add(item))
        if self._failure is not None and not fresh:
            raise self._failure
        return fresh
