"""Whether a peer hears this process: it is asked something again and again, and its answers are waited for.

What a peer sends says nothing about the other direction: one to which nothing gets through still reports.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from services.common.errors import BatonError, DeadlineExceeded, PeerUnreachable

# A wait that took so many times as long as it should tells more of this process than of the peer.
_LATE = 1.5


class Echo:
    """Asks from `start` until `close`; owns one task.

    `missed` counts the heartbeats for which the peer has owed an answer.

    Args:
        ask: one call, with a deadline of its own; whatever the peer itself answers counts, an error, too.
        heartbeat_s: time for an answer, and from an answer to the next call.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]], heartbeat_s: float) -> None:
        self.missed = 0
        self._ask = ask
        self._heartbeat_s = heartbeat_s
        self._asking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to ask."""
        self._asking = asyncio.create_task(self._ask_on(), name="echo")

    async def close(self) -> None:
        """Ends the call that waits for its answer."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask_on(self) -> None:
        while True:
            answer = asyncio.ensure_future(self._answer())
            try:
                while not await comes(answer, self._heartbeat_s):
                    self.missed += 1
            finally:
                answer.cancel()
            self.missed = 0
            await asyncio.sleep(self._heartbeat_s)

    async def _answer(self) -> None:
        """Returns once the peer has answered, however often it must be asked."""
        while True:
            try:
                await self._ask()
            except (PeerUnreachable, DeadlineExceeded):
                await asyncio.sleep(self._heartbeat_s)
            except BatonError:
                return
            else:
                return


async def comes(future: "asyncio.Future[Any]", heartbeat_s: float) -> bool:
    """True where it is done within a heartbeat, or within the next one after a heartbeat that this process missed."""
    began = time.monotonic()
    if (await asyncio.wait({future}, timeout=heartbeat_s))[0]:
        return True
    is_late = time.monotonic() - began > _LATE * heartbeat_s
    return is_late and bool((await asyncio.wait({future}, timeout=heartbeat_s))[0])
