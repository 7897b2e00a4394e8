"""Gives tickets back to their sources, until they say that they have taken note.

A release that is lost would keep blocks at the source, and maybe a prompt running there for nobody, until the lease
ends. So it is tried again, for as long as that lease can last; then, or once the source's process is gone, the lease
has done it. Nobody waits for it. Loop-owned.
"""

import asyncio
import contextlib
import time

from services.common.errors import BatonError
from services.kvtransfer.background import Background
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.peer import Peer

# Most releases under way; what comes on top is left to the leases.
MAX_RELEASES = 1024


class Releases:
    """Owns the calls that give tickets back."""

    def __init__(self, config: TransferConfig) -> None:
        self._config = config
        self._calls = Background()
        self._is_closing = False
        self._counts = {
            "releases_total": 0,
            "releases_failed_total": 0,
            "release_retries_total": 0,
            "aborts_total": 0,
        }

    def start(self, peer: Peer, ticket_id: str, fetch_id: str, uses: contextlib.ExitStack) -> None:
        """Gives a ticket back; `uses` is closed when that is over."""
        if len(self._calls) >= MAX_RELEASES:
            self._counts["releases_failed_total"] += 1
            uses.close()
            return
        self._calls.start(self._release(peer, ticket_id, fetch_id, uses))

    async def finish(self) -> None:
        """Waits for what is under way, without trying anything again; the caller bounds the wait."""
        self._is_closing = True
        await self._calls.finished()

    async def close(self) -> None:
        """Gives up what is under way."""
        await self._calls.close()

    def stats(self) -> dict[str, int]:
        """Releases under way, acknowledged, failed, tried again, and those that stopped work at the source."""
        return {"releases": len(self._calls), **self._counts}

    async def _release(self, peer: Peer, ticket_id: str, fetch_id: str, uses: contextlib.ExitStack) -> None:
        end = time.monotonic() + self._config.lease_s
        pause_s = self._config.min_backoff_s
        with uses:
            while True:
                try:
                    released = await peer.client.release(ticket_id, fetch_id, self._config.call_timeout_s)
                except BatonError:
                    if peer.is_gone or self._is_closing or time.monotonic() + pause_s >= end:
                        self._counts["releases_failed_total"] += 1
                        return
                else:
                    self._counts["releases_total"] += 1
                    self._counts["aborts_total"] += released.stopped_prefill or released.stopped_sending
                    return
                self._counts["release_retries_total"] += 1
                await asyncio.sleep(pause_s)
                pause_s = min(self._config.max_backoff_s, pause_s * 2)
