"""Calls that wait for a ticket which is not open yet. Loop-owned; knows nothing of what a ticket is."""

import asyncio
import time
from collections.abc import Callable

from services.common.errors import DeadlineExceeded


class Arrivals:
    """Wakes whoever waits for a ticket when something happens to it, or to the channel that it was asked over.

    `on_awaited` is called with a ticket and True when somebody asks for it, and with False when nobody waits any more.
    """

    def __init__(self) -> None:
        self.on_awaited: Callable[[str, bool], None] = lambda ticket_id, is_awaited: None
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        """Calls that wait."""
        return sum(len(waiters) for waiters in self._waiters.values())

    def is_awaited(self, ticket_id: str) -> bool:
        """True while a call waits for the ticket."""
        return ticket_id in self._waiters

    async def wait(self, ticket_id: str, channel_waiters: "set[asyncio.Future[None]] | None", deadline: float) -> None:
        """Waits until something happens to the ticket, or somebody resolves what is in `channel_waiters`.

        Raises:
            DeadlineExceeded: nothing happened until the deadline (monotonic clock).
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(ticket_id, set())
        others = set[asyncio.Future[None]]() if channel_waiters is None else channel_waiters
        waiters.add(waiter)
        self.on_awaited(ticket_id, True)
        others.add(waiter)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await waiter
        except TimeoutError:
            message = f"no prefill of ticket {ticket_id} started in time; allow more time or use another worker"
            raise DeadlineExceeded(message) from None
        finally:
            others.discard(waiter)
            waiters.discard(waiter)
            if not waiters and self._waiters.get(ticket_id) is waiters:
                del self._waiters[ticket_id]
                self.on_awaited(ticket_id, False)

    def wake(self, ticket_id: str) -> None:
        """Something happened to a ticket."""
        _resolve(self._waiters.get(ticket_id, set()))

    def wake_all(self) -> None:
        """Something happened to every ticket."""
        for waiters in self._waiters.values():
            _resolve(waiters)


def _resolve(waiters: "set[asyncio.Future[None]]") -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
