"""One request's output as its caller gets it: tokens over a watch, the last of them over its own call. Loop-owned."""

import asyncio

from services.common.choices import join_choices
from services.common.errors import BatonError, PeerError, SlowReader
from services.common.types import ChoiceTokens, DecodeEvent

MAX_UNREAD_TOKENS = 8192
# The last event says how many tokens came over the watch; those that are not there yet are on their way.
_LAST_TOKENS_S = 5.0


class Reading:
    """Puts together what comes over both ways; a slow reader gets several tokens at once."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._pending: list[ChoiceTokens] = []
        self._unread = 0
        self._watched = 0
        self._last: DecodeEvent | None = None
        self._error: BatonError | None = None
        self._is_ended = self._is_whole = self._is_cut = False
        self._wake = asyncio.Event()
        self._is_taken = asyncio.Event()
        self._is_taken.set()
        self._timer: asyncio.TimerHandle | None = None

    def watched(self, choices: tuple[ChoiceTokens, ...]) -> None:
        """Tokens came over the watch."""
        self._watched += sum(len(choice.tokens) for choice in choices)
        self._add(choices)

    def called(self, event: DecodeEvent) -> None:
        """The call brought something: the last event, or tokens where there is no watch."""
        if event.summary is None:
            self._add(event.choices)
            return
        if self._is_cut:
            return  # tokens before it are lost
        self._last = event
        if self._watched < event.watched_tokens:
            lost = PeerError(f"{self._peer} says that it sent more tokens than came; its version may be another one")
            self._timer = asyncio.get_running_loop().call_later(_LAST_TOKENS_S, self.fail, lost)
        self._wake.set()

    def end(self) -> None:
        """The call is over."""
        self._is_ended = True
        self._wake.set()

    def fail(self, error: BatonError) -> None:
        """The request failed; the first error counts, and none once the last event was taken."""
        if not self._is_whole:
            self._error = self._error or error
        self._wake.set()

    def close(self) -> None:
        """Nobody reads any more."""
        if self._timer is not None:
            self._timer.cancel()

    async def taken(self) -> None:
        """Waits until nothing is unread: whoever brings tokens over the call waits, and holds the worker back so.

        The watch does not wait, because others' tokens come over it.
        """
        await self._is_taken.wait()

    async def take(self) -> DecodeEvent | None:
        """Waits for what is new; None after the last of it.

        Raises:
            SlowReader: too much was left unread, and is lost.
            BatonError: the request failed, and everything that came before has been taken.
        """
        while True:
            await self._wake.wait()
            if self._last is not None and self._watched >= self._last.watched_tokens:
                return self._take_last(self._last)
            if self._pending:
                return DecodeEvent(choices=self._take_pending())
            if self._error is not None:
                raise self._error
            if self._is_ended and self._last is None:
                return None
            self._wake.clear()

    def _take_last(self, last: DecodeEvent) -> DecodeEvent:
        self.close()
        self._last, self._is_whole = None, True
        self._pending.extend(last.choices)
        return DecodeEvent(choices=self._take_pending(), summary=last.summary)

    def _take_pending(self) -> tuple[ChoiceTokens, ...]:
        pending, self._pending, self._unread = self._pending, [], 0
        self._is_taken.set()
        return join_choices(pending)

    def _add(self, choices: tuple[ChoiceTokens, ...]) -> None:
        if self._is_cut:
            return
        self._unread += sum(len(choice.tokens) for choice in choices)
        if self._unread > MAX_UNREAD_TOKENS:
            self._cut()
        elif choices:
            self._pending.extend(choices)
            self._is_taken.clear()
            self._wake.set()

    def _cut(self) -> None:
        """Drops what is unread; whatever comes from now on has a gap before it."""
        self._pending.clear()
        self._is_taken.set()
        self._last, self._is_cut = None, True
        self.fail(SlowReader(f"{MAX_UNREAD_TOKENS} tokens are unread; read the stream faster, or ask for less"))
