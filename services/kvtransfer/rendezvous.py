"""How the two sides of a pair find each other: a few keys, exchanged over the gRPC connection that is there anyway.

The source keeps the keys of a channel in memory; the sink reaches them through `KvTransferService.Rendezvous`. torch's
own `TCPStore` is not used: it listens on every interface without asking who connects, and it looks up the name of each
client in DNS on its only thread, so that one lost DNS packet stops every rendezvous for five seconds (seen).
"""

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from datetime import timedelta
from typing import Protocol

from torch._C._distributed_c10d import Store

from services.common.errors import BatonError, ChannelBroken, DeadlineExceeded, FieldViolation, InvalidRequest

MAX_KEYS = 64
MAX_VALUE_BYTES = 64 * 1024


class Keys(Protocol):
    """Keys that both sides of one channel can set and read. Both methods block; called on the channel's thread."""

    def set(self, key: str, value: bytes, timeout_s: float) -> None:
        """Sets a key."""
        ...

    def get(self, key: str, timeout_s: float) -> bytes:
        """Reads a key, waiting until it is there.

        Raises:
            BatonError: it did not come in time, or the channel is gone.
        """
        ...


class SourceKeys:
    """The keys themselves, at the source. `set`, `get` on any thread; `read`, `close` on the loop."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._readers: set[asyncio.Future[None]] = set()

    def set(self, key: str, value: bytes, timeout_s: float) -> None:
        """Sets a key, once; never waits.

        Raises:
            InvalidRequest: the key is set, the value is too large or there are too many keys.
        """
        if key in self._values:
            # Each side has its own key and sets it once: whoever sets another's means to be taken for it.
            raise InvalidRequest(FieldViolation("key", "is set already"))
        if len(value) > MAX_VALUE_BYTES or len(self._values) >= MAX_KEYS:
            message = f"has {len(value)} bytes as key {len(self._values)}, at most {MAX_VALUE_BYTES} in {MAX_KEYS} fit"
            raise InvalidRequest(FieldViolation("value", message))
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._wake)

    def get(self, key: str, timeout_s: float) -> bytes:
        """Reads a key, blocking until it is there."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or key in self._values, timeout_s)
            if key not in self._values:
                raise ChannelBroken(f"the other side of the channel did not come within {timeout_s:g} s")
            return self._values[key]

    async def read(self, key: str, deadline: float) -> bytes:
        """Reads a key for the sink, waiting until it is there.

        Raises:
            ChannelBroken: the channel is gone.
            DeadlineExceeded: the key did not come in time.
        """
        while key not in self._values:
            if self._is_closed:
                raise ChannelBroken("the channel is gone; open a new one")
            reader: asyncio.Future[None] = self._loop.create_future()
            self._readers.add(reader)
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await reader
            except TimeoutError:
                raise DeadlineExceeded("the source did not join the channel in time") from None
            finally:
                self._readers.discard(reader)
        return self._values[key]

    def close(self) -> None:
        """Wakes everybody who waits; idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._wake()

    def _wake(self) -> None:
        for reader in self._readers:
            if not reader.done():
                reader.set_result(None)


Exchange = Callable[[str, bytes | None, float], Coroutine[None, None, bytes]]
"""Sets (or with None reads) a key at the source until a deadline on the monotonic clock."""


class SinkKeys:
    """The sink's view of the keys: every call goes to the source, through the loop."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._seen: dict[str, bytes] = {}

    def set(self, key: str, value: bytes, timeout_s: float) -> None:
        """Sets a key at the source."""
        self._seen[key] = self._call(key, value, timeout_s)

    def get(self, key: str, timeout_s: float) -> bytes:
        """Reads a key from the source; asks for each only once."""
        if key not in self._seen:
            self._seen[key] = self._call(key, None, timeout_s)
        return self._seen[key]

    def _call(self, key: str, value: bytes | None, timeout_s: float) -> bytes:
        exchanging = self._exchange(key, value, time.monotonic() + timeout_s)
        try:
            call = asyncio.run_coroutine_threadsafe(exchanging, self._loop)
        except RuntimeError as error:
            exchanging.close()
            raise ChannelBroken("the process is shutting down") from error
        try:
            return call.result(timeout_s + 1.0)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError) as error:
            call.cancel()
            raise ChannelBroken("the source did not answer the rendezvous in time") from error
        finally:
            # The call keeps its error, the error this frame, and the frame all those of gloo, with sockets and thread.
            del call


class PairStore(Store):
    """What torch asks for when it builds a process group; every key goes to `keys`."""

    def __init__(self, keys: Keys, timeout_s: float) -> None:
        super().__init__()
        self._keys = keys
        self._timeout_s = timeout_s

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]
        """Sets a key."""
        with crossing_torch():
            self._keys.set(key, value, self._timeout_s)

    def get(self, key: str) -> bytes:  # type: ignore[override]
        """Reads a key, waiting for it."""
        with crossing_torch():
            return self._keys.get(key, self._timeout_s)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:  # type: ignore[override]
        """Waits for keys."""
        timeout_s = self._timeout_s if timeout is None else timeout.total_seconds()
        with crossing_torch():
            for key in keys:
                self._keys.get(key, timeout_s)


@contextlib.contextmanager
def crossing_torch() -> Generator[None]:
    """Raises as RuntimeError, which is what torch's own stores raise."""
    try:
        yield
    except BatonError as error:
        raise RuntimeError(error.message) from None
