"""One call of the in-memory gRPC, as its client holds it and as its server answers it."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import grpc

# What a slow reader leaves unread before the writer waits; stands for gRPC's flow-control window.
WINDOW = 16

Trailing = tuple[tuple[str, Any], ...]


class MemoryCall:
    """As `grpc.aio.UnaryUnaryCall` and `UnaryStreamCall`; `parties` are the calling and the serving process."""

    deserialize: Callable[[bytes], Any]

    def __init__(
        self,
        travel: Callable[["MemoryCall"], Awaitable[None]],
        caller: str,
        method: str,
        request: bytes,
        metadata: Any,
    ) -> None:
        self.travel = travel
        self.parties: tuple[str, ...] = (caller,)
        self.method = method
        self.request = request
        self.metadata = tuple(metadata)
        self.deadline: float | None = None
        self.status: grpc.StatusCode | None = None
        self.is_withdrawn = False
        self.serving: asyncio.Task[None] | None = None
        self._is_cancelled = False
        self._text = ""
        self._trailing: Trailing = ()
        self._answers: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._callbacks: list[Callable[[], object]] = []

    def on_end(self, callback: Callable[[], object]) -> None:
        """Is called when the call has a status."""
        self._callbacks.append(callback)

    def limit(self, timeout_s: float | None) -> None:
        """Sets the deadline. One that only the metadata tell is the server's to keep, as nobody else's timer is."""
        told = dict(self.metadata).get("grpc-timeout")
        if told is not None:
            self.deadline = time.monotonic() + int(told.removesuffix("m")) / 1000
        if timeout_s is not None:
            self.deadline = time.monotonic() + timeout_s
            late = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            self._timer = asyncio.get_running_loop().call_later(max(0.0, timeout_s), self._give_up, *late)

    async def deliver(self, data: bytes) -> None:
        """A message of the server arrives; waits while the client leaves too many unread."""
        while len(self._answers) >= WINDOW and self.status is None:
            await self._changed.wait()
        if self.status is None:
            self._answers.append(data)
            self._notify()

    def settle(self, status: grpc.StatusCode, text: str, trailing: Trailing = ()) -> None:
        """The call ends with a status; the first one counts."""
        if self.status is not None:
            return
        self.status, self._text, self._trailing = status, text, trailing
        if self._timer is not None:
            self._timer.cancel()
        for callback in self._callbacks:
            callback()
        self._notify()

    def fail(self, status: grpc.StatusCode, text: str) -> None:
        """The call breaks for both sides at once."""
        self.settle(status, text)
        self.is_withdrawn = True
        if self.serving is not None:
            self.serving.cancel()

    def cancel(self) -> bool:
        """As `grpc.aio.Call.cancel`."""
        if self.status is not None:
            return False
        self._is_cancelled = True
        self._give_up(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
        return True

    def done(self) -> bool:
        """As `grpc.aio.Call.done`."""
        return self.status is not None

    def cancelled(self) -> bool:
        """As `grpc.aio.Call.cancelled`."""
        return self._is_cancelled

    async def read(self) -> Any:
        """As `grpc.aio.UnaryStreamCall.read`."""
        while not self._answers and self.status is None:
            try:
                await self._changed.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self._is_cancelled:
            raise asyncio.CancelledError
        if self._answers:
            data = self._answers.popleft()
            self._notify()
            return self.deserialize(data)
        if self.status is not grpc.StatusCode.OK:
            raise self._error()
        return grpc.aio.EOF

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()

    async def code(self) -> grpc.StatusCode | None:
        """As `grpc.aio.Call.code`."""
        while self.status is None:
            await self._changed.wait()
        return self.status

    async def trailing_metadata(self) -> Trailing:
        """As `grpc.aio.Call.trailing_metadata`."""
        await self.code()
        return self._trailing

    async def _response(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise self._error()
        return message

    def _give_up(self, status: grpc.StatusCode, text: str) -> None:
        """The client gives up; the server hears of it a moment later."""
        self.settle(status, text)
        if self.serving is not None and not self.serving.done():
            self._stopping = asyncio.get_running_loop().create_task(self._stop_serving(self.serving))

    async def _stop_serving(self, serving: asyncio.Task[None]) -> None:
        await self.travel(self)
        self.is_withdrawn = True
        serving.cancel()

    def _error(self) -> grpc.aio.AioRpcError:
        trailing: Any = grpc.aio.Metadata(*self._trailing)
        code = self.status or grpc.StatusCode.UNKNOWN
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=self._text)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
