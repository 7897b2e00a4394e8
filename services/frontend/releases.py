"""Gives tickets back in the background, when a request ended before decode took its KV.

Best effort and bounded: a ticket that is not given back here ends with its lease.
"""

import asyncio

from services.common.errors import BatonError
from services.common.log import get_logger
from services.frontend.member import Member

_TIMEOUT_S = 2.0
_MAX_IN_FLIGHT = 256

_log = get_logger(__name__)


class TicketReleases:
    """Owns the calls that give tickets back."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._released = 0
        self._failed = 0

    def release(self, member: Member, ticket_id: str) -> None:
        """Gives a ticket back to the worker that opened it; returns at once."""
        if len(self._tasks) >= _MAX_IN_FLIGHT:
            self._failed += 1
            return
        member.begin(0)  # keeps the connection until the call is over
        task = asyncio.create_task(self._release(member, ticket_id), name="release-ticket")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: member.end(0))

    async def close(self) -> None:
        """Waits for the calls that run; each is short."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stats(self) -> dict[str, int]:
        """Calls that run, that reached the worker, and that did not."""
        return {
            "ticket_releases_running": len(self._tasks),
            "ticket_releases": self._released,
            "ticket_releases_failed": self._failed,
        }

    async def _release(self, member: Member, ticket_id: str) -> None:
        try:
            await member.calls.tickets.release(ticket_id, fetch_id="", timeout_s=_TIMEOUT_S)
            self._released += 1
        except BatonError as error:
            self._failed += 1
            _log.info("ticket_release_failed", worker_id=member.worker.worker_id, error=type(error).__name__)
