"""Tokens of many requests on their way to one caller: those of one step travel in one message. Loop-owned.

A message for each token of each request costs both sides more than the step that made it, once a few requests run at a
time (measured: 7 of 24 ms with 16 requests).
"""

import asyncio
import contextlib
from collections.abc import Generator

from services.common.choices import join_choices
from services.common.errors import BatonError, FieldViolation, InvalidRequest, Overloaded, PeerUnreachable
from services.common.types import ChoiceTokens
from services.common.validation import id_violations
from services.decode.place import Place
from services.decode.stream import TokenStream

MAX_WATCHES = 1024
# A watch that nobody reads takes no new request once it holds what so many may leave unread.
MAX_UNREAD_REQUESTS = 16


class TokenWatch:
    """What came for the requests of one caller since it last read, at most `max_tokens` of each request."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._streams: dict[int, TokenStream] = {}
        self._pending: dict[int, list[ChoiceTokens]] = {}
        self._unread: dict[int, int] = {}
        self._wake = asyncio.Event()
        self._is_closed = False

    def __len__(self) -> int:
        """Requests that name it."""
        return len(self._streams)

    def join(self, key: int, stream: TokenStream) -> None:
        """Takes the tokens of a request from now on; `leave` follows.

        Raises:
            InvalidRequest: another request has the key.
            Overloaded: too much is unread already, also of requests that are over.
            PeerUnreachable: the watch has ended.
        """
        if self._is_closed:
            raise _gone()
        if sum(self._unread.values()) >= MAX_UNREAD_REQUESTS * self._max_tokens:
            raise Overloaded("the watch is full of unread tokens; read it, or open another one", retry_after_s=1.0)
        if key in self._streams:
            raise InvalidRequest(FieldViolation("watch_key", "is in use; take another one for each request"))
        self._streams[key] = stream
        stream.divert(lambda choices: self._put(key, choices))

    def leave(self, key: int) -> None:
        """The request is over; what it left unread still goes out, unless it failed."""
        if self._streams.pop(key).progress is None:
            self._pending.pop(key, None)
            self._unread.pop(key, None)

    async def take(self) -> dict[int, tuple[ChoiceTokens, ...]] | None:
        """Waits for new tokens and gives all of them by request; None once the watch has ended.

        Cancel: safe; nothing is lost.
        """
        await self._wake.wait()
        if self._is_closed:
            return None
        self._wake.clear()
        pending, self._pending = self._pending, {}
        self._unread.clear()
        return {key: join_choices(parts) for key, parts in pending.items()}

    def close(self, error: BatonError) -> None:
        """Ends the watch and every request on it; idempotent."""
        self._is_closed = True
        self._wake.set()
        for stream in self._streams.values():
            stream.fail(error)

    def _put(self, key: int, choices: tuple[ChoiceTokens, ...]) -> bool:
        """Adds tokens; False where the caller has left too many of the request unread."""
        unread = self._unread.get(key, 0) + sum(len(choice.tokens) for choice in choices)
        if unread > self._max_tokens:
            return False
        self._unread[key] = unread
        self._pending.setdefault(key, []).extend(choices)
        self._wake.set()
        return True


class TokenWatches:
    """The watches of one worker."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._open: dict[str, TokenWatch] = {}

    def open(self, watch_id: str) -> TokenWatch:
        """Begins a watch; `close` follows.

        Raises:
            InvalidRequest: the id cannot be one, or is in use.
            Overloaded: there are too many.
        """
        violations = id_violations("watch_id", watch_id)
        if not watch_id or watch_id in self._open:
            violations.append(FieldViolation("watch_id", "must be set, and another one for each watch"))
        if violations:
            raise InvalidRequest(violations)
        if len(self._open) >= MAX_WATCHES:
            raise Overloaded(f"{MAX_WATCHES} watches of tokens are open; close some first", retry_after_s=1.0)
        watch = self._open[watch_id] = TokenWatch(self._max_tokens)
        return watch

    @contextlib.contextmanager
    def joined(self, place: Place | None, stream: TokenStream) -> Generator[None]:
        """Has all tokens of a request but the last go to its place, if it has one, for as long as the request runs.

        Raises:
            PeerUnreachable: there is no such watch; it ended.
            InvalidRequest: the place is taken.
            Overloaded: nobody reads the watch.
        """
        if place is None:
            yield
            return
        if (watch := self._open.get(place.watch_id)) is None:
            raise _gone()
        watch.join(place.key, stream)
        try:
            yield
        finally:
            watch.leave(place.key)

    def close(self, watch_id: str) -> None:
        """Ends a watch whose caller has left."""
        self._open.pop(watch_id).close(_gone())

    def close_all(self, error: BatonError) -> None:
        """Ends every watch: the worker stops."""
        for watch in self._open.values():
            watch.close(error)

    def stats(self) -> dict[str, int]:
        """Open watches and the requests on them."""
        return {"token_watches": len(self._open), "watched_requests": sum(map(len, self._open.values()))}


def _gone() -> PeerUnreachable:
    return PeerUnreachable("the watch over which the tokens were to come has ended; open another one")
