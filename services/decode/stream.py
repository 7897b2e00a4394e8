"""A request's output on its way from the engine to whoever reads it: coalesced, bounded, with one reader."""

import asyncio
from collections.abc import Callable

from services.common.choices import join_choices
from services.common.errors import BatonError, Overloaded
from services.common.types import ChoiceTokens
from services.decode.messages import Progress


class TokenStream:
    """Collects new tokens until the reader comes back for them.

    A reader that is slower than the engine gets several tokens at once; one that leaves more than `max_tokens` unread
    ends the request with `Overloaded`. All tokens but the last may be diverted to somebody else, who reads them in the
    reader's place. Everything here runs on the event loop.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._pending: list[ChoiceTokens] = []
        self._num_pending = 0
        self._divert: Callable[[tuple[ChoiceTokens, ...]], bool] | None = None
        self.num_tokens = self.diverted_tokens = 0
        self.error: BatonError | None = None
        self._wake = asyncio.Event()
        self.progress: Progress | None = None

    @property
    def is_ended(self) -> bool:
        """True once the last tokens or an error came; unread tokens may be left."""
        return self.progress is not None or self.error is not None

    def divert(self, put: Callable[[tuple[ChoiceTokens, ...]], bool]) -> None:
        """Gives all tokens but the last to `put`, which says False where it cannot hold them."""
        self._divert = put

    def put(self, choices: tuple[ChoiceTokens, ...], progress: Progress | None) -> bool:
        """Adds tokens; False where the reader is too slow and the stream has ended with an error instead."""
        num_tokens = sum(len(choice.tokens) for choice in choices)
        self.num_tokens += num_tokens
        if self._divert is not None and progress is None:
            self.diverted_tokens += num_tokens
            return self._divert(choices) or self._overflow()
        self._num_pending += num_tokens
        if self._num_pending > self._max_tokens:
            return self._overflow()
        self._pending.extend(choices)
        self.progress = progress
        self._wake.set()
        return True

    def fail(self, error: BatonError) -> None:
        """Ends the stream; tokens that are unread are dropped. Ignored once the stream has ended."""
        if not self.is_ended:
            self.error = error
            self._wake.set()

    async def take(self) -> tuple[ChoiceTokens, ...]:
        """Waits for new tokens and returns all of them, those of one choice joined.

        Raises:
            BatonError: the request failed.
        Cancel: safe; nothing is lost.
        """
        await self._wake.wait()
        self._wake.clear()
        if self.error is not None:
            raise self.error
        pending, self._pending, self._num_pending = self._pending, [], 0
        return join_choices(pending)

    def _overflow(self) -> bool:
        self.fail(Overloaded(f"{self._max_tokens} tokens are unread; read the stream faster"))
        return False
