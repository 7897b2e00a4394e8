"""The way of a worker out: takes nothing new, lets what runs finish, sends on what cannot finish in time."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from services.common.errors import Draining

# Time that what was sent on has to leave: streams end, tickets are given back, blocks become free.
MOVE_MARGIN_S = 5.0


class Drain:
    """Open at first; once closed it refuses requests. Everything here runs on the event loop."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_closed = False
        self.moved = 0

    def check(self) -> None:
        """Lets a request in.

        Raises:
            Draining: the worker is leaving.
        """
        if self.is_closed:
            raise self.error()

    def error(self) -> Draining:
        """What whoever must go elsewhere is told."""
        return Draining(f"worker {self._worker_id} is leaving; send the request to another one")

    def close(self) -> None:
        """Lets nothing more in."""
        self.is_closed = True

    def occupied(self, count: int) -> None:
        """Tells how much is left."""
        if count:
            self._idle.clear()
        else:
            self._idle.set()

    async def run(self, deadline: float, move_after_s: float | None, move: Callable[[Draining], int]) -> None:
        """Waits until nothing is left, or until `deadline` (monotonic).

        Args:
            deadline: When to stop waiting.
            move_after_s: Seconds after which `move` is called, once; None: as late as is sensible.
            move: Ends what runs with the error that makes it go on elsewhere; returns how many requests that were.
        """
        await self._wait(move_time(time.monotonic(), deadline, move_after_s))
        if not self._idle.is_set():
            self.moved += move(self.error())
            await self._wait(deadline)

    async def _wait(self, until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._idle.wait()


def move_time(now: float, deadline: float, after_s: float | None) -> float:
    """When what still runs is sent on: early enough before the deadline that all of it is gone by then."""
    latest = deadline - min(MOVE_MARGIN_S, max(0.0, deadline - now) / 2)
    return latest if after_s is None else min(now + after_s, latest)
