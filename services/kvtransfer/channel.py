"""One side of a channel: a thread of its own, a transport, staging buffers, and nothing else.

    connecting ──▶ ready ──▶ broken
         └───────────────────▲

A channel belongs to one pair of processes and one epoch and is never repaired: any failure breaks it, and its owner
builds the next one. Operations run on the channel's thread one after the other, because both sides must send and
receive in the same order. Knows neither tickets nor KV nor gRPC.
"""

import asyncio
import contextlib
import enum
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from services.common.errors import BatonError, ChannelBroken, QueueFull
from services.kvtransfer.staging import Staging
from services.kvtransfer.transport.base import Transport

T = TypeVar("T")
Operation = Callable[[Transport, Staging], T]

MAX_OPERATIONS = 64


class ChannelState(enum.Enum):
    """Where a channel is in its life."""

    CONNECTING = "connecting"
    READY = "ready"
    BROKEN = "broken"


class Channel:
    """Runs operations on a transport until one fails or the channel is aborted.

    Thread: every method belongs to the event loop; operations and `open_transport` run on the channel's thread. When
    the thread ends, the transport is aborted and dropped and staging is gone.
    """

    def __init__(self, name: str, open_transport: Callable[[], Transport], staging: Staging) -> None:
        self.name = name
        self.state = ChannelState.CONNECTING
        self.error: BatonError | None = None
        self.staging = staging
        self._open_transport = open_transport
        self._transport: Transport | None = None
        self._traffic: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._operations: queue.Queue[tuple[Operation[Any], asyncio.Future[Any]] | None] = queue.Queue(MAX_OPERATIONS)
        self._is_aborted = threading.Event()
        self._ended = asyncio.Event()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=f"channel-{name}", daemon=True)

    async def open(self) -> None:
        """Starts the thread and waits until the transport is built; cancelling leaves the building to its timeout.

        Raises:
            ChannelBroken: the two sides could not be joined.
        """
        self._thread.start()
        await asyncio.shield(self._opened)

    def mark_ready(self) -> None:
        """The probe went through: the channel may carry KV."""
        if self.state is ChannelState.CONNECTING:
            self.state = ChannelState.READY

    def submit(self, operation: Operation[T]) -> asyncio.Future[T]:
        """Queues an operation; whatever it raises breaks the channel.

        The future ends only when the operation can no longer run: shield it, and never cancel it.

        Raises:
            ChannelBroken: the channel is broken.
            QueueFull: too many operations wait; a bug of the caller, who is meant to wait for earlier ones.
        """
        if self.error is not None:
            raise self.error.with_traceback(None)
        future: asyncio.Future[T] = self._loop.create_future()
        try:
            self._operations.put_nowait((operation, future))
        except queue.Full:
            raise QueueFull(f"channel {self.name} has {MAX_OPERATIONS} operations waiting") from None
        return future

    def abort(self, error: BatonError) -> None:
        """Breaks the channel now; idempotent, never blocks. The thread ends when its current operation has ended."""
        if self.state is ChannelState.BROKEN:
            return
        self.state, self.error = ChannelState.BROKEN, error
        self._is_aborted.set()
        if self._transport is not None:
            self._transport.abort()
        with contextlib.suppress(queue.Full):  # a full queue keeps the thread awake by itself
            self._operations.put_nowait(None)

    async def wait_ended(self, timeout_s: float) -> bool:
        """Waits until the thread has ended and given everything back; False where it has not in time."""
        if self._thread.ident is None:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        return self._ended.is_set()

    @property
    def has_ended(self) -> bool:
        """True once the thread has given everything back, or was never started."""
        return self._thread.ident is None or self._ended.is_set()

    def stats(self) -> dict[str, int]:
        """Staging, waiting operations, messages and bytes."""
        traffic = self._traffic if self._transport is None else self._transport.stats()
        return {**self.staging.stats(), **traffic, "channel_operations": self._operations.qsize()}

    def _run(self) -> None:
        error: BaseException = ChannelBroken(f"channel {self.name} was closed")
        try:
            self._transport = self._open_transport()
            self.staging.device = self._transport.device
            self._settle(self._opened, None, None)
            while not self._is_aborted.is_set() and (item := self._operations.get()) is not None:
                self._perform(*item)
        except BaseException as caught:  # noqa: BLE001 - whatever escapes must reach the owner, or fetches would hang
            error = caught
        self._clean_up(error)

    def _perform(self, operation: Operation[Any], future: asyncio.Future[Any]) -> None:
        if self._transport is None:
            raise ChannelBroken(f"channel {self.name} has no transport")
        try:
            result = operation(self._transport, self.staging)
        except BaseException as error:
            self._settle(future, None, as_broken(error, self.name))
            raise
        self._settle(future, result, None)

    def _clean_up(self, cause: BaseException) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            self._traffic = transport.stats()
            transport.abort()
        del transport  # closes the sockets: nothing of the pair may outlive the thread
        self.staging.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._end, as_broken(cause, self.name))

    def _end(self, error: BatonError) -> None:
        if self.state is not ChannelState.BROKEN:
            self.state, self.error = ChannelState.BROKEN, error
        self._is_aborted.set()
        broken = self.error or error
        _resolve(self._opened, None, broken)
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._operations.get_nowait()
                if item is not None:
                    _resolve(item[1], None, broken)
        self._ended.set()

    def _settle(self, future: asyncio.Future[Any], result: object, error: BatonError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_resolve, future, result, error)


def as_broken(error: BaseException, name: str) -> BatonError:
    """The typed error for what broke a channel, without the frames that it went through.

    Frames would keep the transport, and with it its sockets, alive for as long as anybody keeps the error.
    """
    if not isinstance(error, BatonError):
        return ChannelBroken(f"channel {name} failed: {type(error).__name__}: {error}")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _resolve(future: asyncio.Future[Any], result: object, error: BatonError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # marks it as seen: a waiter that was cancelled would otherwise leave a complaint in the log
