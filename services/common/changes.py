"""Lets tasks wait for something to change, without missing a change and without a lock."""

import asyncio


class Changes:
    """Counts changes; a waiter that missed some sees at once that the count went on.

    Thread: the event loop's only. A closed one never waits.
    """

    def __init__(self) -> None:
        self._count = 0
        self._next = asyncio.Event()
        self._is_closed = False

    @property
    def count(self) -> int:
        """Changes so far."""
        return self._count

    @property
    def is_closed(self) -> bool:
        """True once nothing will change any more."""
        return self._is_closed

    def notify(self) -> None:
        """Counts a change and wakes all waiters."""
        self._count += 1
        self._next.set()
        self._next = asyncio.Event()

    def close(self) -> None:
        """Wakes all waiters for good; whoever watches should end."""
        self._is_closed = True
        self.notify()

    async def wait(self, seen: int, timeout_s: float | None = None) -> bool:
        """Waits until the count differs from `seen`; False where the time ran out first.

        Cancel: safe.
        """
        if self._count != seen or self._is_closed:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._next.wait()
        except TimeoutError:
            return self._count != seen
        return True

    async def wait_closed(self, timeout_s: float) -> bool:
        """Waits `timeout_s` seconds, or until closed; True where it was closed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not self._is_closed and (left := deadline - loop.time()) > 0:
            await self.wait(self._count, left)
        return self._is_closed
