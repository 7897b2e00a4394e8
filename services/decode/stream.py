"""A request's output on its way from the engine to whoever reads it: coalesced, bounded, with one reader."""

import asyncio

from services.common.errors import BatonError, Overloaded
from services.common.types import ChoiceTokens
from services.decode.messages import Progress


class TokenStream:
    """Collects new tokens until the reader comes back for them.

    A reader that is slower than the engine gets several tokens at once; one that leaves more than `max_tokens` unread
    ends the request with `Overloaded`. Everything here runs on the event loop.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._pending: list[ChoiceTokens] = []
        self._num_pending = 0
        self.error: BatonError | None = None
        self._wake = asyncio.Event()
        self.progress: Progress | None = None

    @property
    def is_ended(self) -> bool:
        """True once the last tokens or an error came; unread tokens may be left."""
        return self.progress is not None or self.error is not None

    def put(self, choices: tuple[ChoiceTokens, ...], progress: Progress | None) -> bool:
        """Adds tokens; False where the reader is too slow and the stream has ended with an error instead."""
        self._num_pending += sum(len(choice.tokens) for choice in choices)
        if self._num_pending > self._max_tokens:
            self.fail(Overloaded(f"{self._max_tokens} tokens are unread; read the stream faster"))
            return False
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
        return _join(pending)


def _join(pending: list[ChoiceTokens]) -> tuple[ChoiceTokens, ...]:
    joined: dict[int, ChoiceTokens] = {}
    for part in pending:
        before = joined.get(part.choice)
        tokens = (*before.tokens, *part.tokens) if before else part.tokens
        joined[part.choice] = ChoiceTokens(part.choice, tokens, part.finish)
    return tuple(joined.values())
