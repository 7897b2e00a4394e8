"""A worker's tokens as its caller reads them: one call for all requests, which each get their own. Loop-owned.

A watch takes new requests for a while only; then another one does, and the old one ends with its last request. So a
connection that its server gives up by age ends no request before its time.
"""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import grpc

from services.common.errors import BatonError, DeadlineExceeded, PeerError, PeerIncompatible, PeerUnreachable
from services.common.log import get_logger
from services.common.rpc.channel import answered, rpc_errors
from services.common.types import ChoiceTokens
from services.decode.place import Place
from services.decode.reading import Reading

OPEN_TIMEOUT_S = 3.0
WATCH_S = 30.0

_log = get_logger(__name__)


# A call that opens a watch of an id.
OpenCall = Callable[[str], Any]
# What a message brings, by the key of its request.
Parts = Callable[[Any], Iterable[tuple[int, tuple[ChoiceTokens, ...]]]]


class Watch:
    """One call, read by a task that ends with it."""

    def __init__(self, watch_id: str, call: Any, parts: Parts, peer: str) -> None:
        self._watch_id = watch_id
        self._call = call
        self._parts = parts
        self._peer = peer
        self._readings: dict[int, Reading] = {}
        self._keys = itertools.count(1)
        self._until = time.monotonic() + WATCH_S
        self._is_retired = False
        self._reader = asyncio.create_task(self._read(), name=f"watch-tokens-{peer}")

    def __len__(self) -> int:
        """Requests that are read over it."""
        return len(self._readings)

    @property
    def is_over(self) -> bool:
        """True once nothing more comes."""
        return self._reader.done()

    @property
    def takes_more(self) -> bool:
        """True while new requests may name it."""
        return not self._is_retired and not self._reader.done() and time.monotonic() < self._until

    def join(self, reading: Reading) -> Place:
        """Gives a request its tokens from now on; `leave` follows."""
        place = Place(self._watch_id, next(self._keys))
        self._readings[place.key] = reading
        return place

    def leave(self, place: Place) -> None:
        """The request is over."""
        self._readings.pop(place.key, None)
        self._end_unused()

    def retire(self) -> None:
        """Takes no new request and ends with the last one."""
        self._is_retired = True
        self._end_unused()

    def end(self) -> None:
        """Ends the call; requests on it fail."""
        self._call.cancel()

    def _end_unused(self) -> None:
        if self._is_retired and not self._readings:
            self.end()

    async def _read(self) -> None:
        error: BatonError = PeerUnreachable(f"{self._peer} stops and sends no more tokens; another worker may")
        try:
            with rpc_errors(self._peer):
                while (message := await self._call.read()) is not grpc.aio.EOF:
                    for key, choices in self._parts(answered(message, self._peer)):
                        if (reading := self._readings.get(key)) is not None:
                            reading.watched(choices)
        except BatonError as caught:
            error = caught
        except Exception:  # noqa: BLE001 - whatever escapes must reach the requests, or they would wait for ever
            _log.exception("token_watch_failed", peer=self._peer)
            error = PeerError(f"{self._peer} sent tokens that cannot be read; the log has the reason")
        self._is_retired = True
        for reading in self._readings.values():
            reading.fail(error)


class TokenReader:
    """Keeps a watch at one worker for as long as requests come; `peer` names the worker in errors."""

    def __init__(self, open_call: OpenCall, parts: Parts, peer: str) -> None:
        self._open_call = open_call
        self._parts = parts
        self._peer = peer
        self._watch: Watch | None = None
        self._watches: list[Watch] = []  # the old ones, too, until their last requests end
        self._is_served = True
        self._is_closed = False
        self._opening = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def reading(self, deadline: float) -> AsyncGenerator[tuple[Reading, Place | None], None]:
        """What a request reads, and its place for the request; None where the worker knows no watches.

        Raises:
            BatonError: the worker cannot be asked, or does not answer in time (`deadline` is monotonic).
        """
        reading = Reading(self._peer)
        watch = await self._within(deadline)
        place = None if watch is None else watch.join(reading)
        try:
            yield reading, place
        finally:
            reading.close()
            if watch is not None and place is not None:
                watch.leave(place)

    def close(self) -> None:
        """Ends every watch, and with it the requests on it; idempotent.

        Closing their channel does not: gRPC leaves a stream that has begun to its server.
        """
        self._is_closed = True
        for watch in self._watches:
            watch.end()

    def stats(self) -> dict[str, int]:
        """Open watches and the requests on them."""
        watches = [watch for watch in self._watches if not watch.is_over]
        return {"token_watches": len(watches), "watched_requests": sum(map(len, watches))}

    async def _within(self, deadline: float) -> Watch | None:
        """A watch that takes the request; whoever waits for another's opening waits no longer either."""
        limit = min(deadline, time.monotonic() + OPEN_TIMEOUT_S)
        try:
            async with asyncio.timeout_at(limit):
                return await self._open_watch()
        except TimeoutError:
            if limit == deadline:
                raise DeadlineExceeded(f"{self._peer} did not answer within the time that was left") from None
            raise PeerUnreachable(f"{self._peer} did not answer within {OPEN_TIMEOUT_S:g} s") from None

    async def _open_watch(self) -> Watch | None:
        async with self._opening:
            if self._watch is not None and not self._watch.takes_more:
                self._watch.retire()
                self._watch = None
            if self._watch is None and self._is_served:
                self._watch = await self._open()
            return self._watch

    async def _open(self) -> Watch | None:
        watch_id = secrets.token_hex(16)
        call = self._open_call(watch_id)
        try:
            with rpc_errors(self._peer):
                first = await call.read()
            if first is grpc.aio.EOF or self._is_closed:
                raise PeerUnreachable(f"{self._peer} stops and sends no more tokens; another worker may")
        except PeerIncompatible:
            self._is_served = False
            return None
        except BaseException:
            call.cancel()
            raise
        watch = Watch(watch_id, call, self._parts, self._peer)
        self._watches = [*(old for old in self._watches if not old.is_over), watch]
        return watch
