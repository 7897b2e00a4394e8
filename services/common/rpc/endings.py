"""Ends calls with a status, also those whose client does not read.

A status waits behind what was written before it, and gRPC's server knows no other way to end a call. So that an answer
nobody reads holds up nothing but itself, only a moment is waited for it; then the call is left to gRPC, which sends the
status should the client read on, and drops it with the connection or at the client's deadline.
"""

import asyncio
from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]

STATUS_WAIT_S = 1.0


class LeftUnread(asyncio.CancelledError):
    """Ends the handler of a call whose status waits; gRPC takes it, as any CancelledError, without a word."""


class Endings:
    """The calls whose status waits. Loop-owned."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[Any]] = set()

    def __len__(self) -> int:
        """Calls that are over and whose client has not read so."""
        return len(self._waiting)

    async def end(self, context: Context, code: grpc.StatusCode, text: str, metadata: Any) -> None:
        """Ends the call.

        Raises:
            AbortError: it has ended; this is how gRPC wants a handler to stop.
            LeftUnread: its status waits.
        """
        ending: asyncio.Future[Any] = asyncio.ensure_future(context.abort(code, text, metadata))
        self._waiting.add(ending)
        ending.add_done_callback(self._ended)
        await asyncio.wait([ending], timeout=STATUS_WAIT_S)
        if not ending.done():
            raise LeftUnread
        ending.result()

    def _ended(self, ending: "asyncio.Future[Any]") -> None:
        self._waiting.discard(ending)
        if not ending.cancelled():
            ending.exception()  # marks it as seen: it is always an AbortError, or says that the client is gone
