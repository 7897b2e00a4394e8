"""A prompt whose caller still waits for its first token."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field

from services.common.errors import BatonError, DeadlineExceeded
from services.common.types import PrefillResult, Usage, WorkRequest
from services.prefill.messages import Finished


@dataclass(slots=True, eq=False)
class LivePrompt:
    """`done` is what the caller waits for; `has_ticket` is set once the source knows the ticket.

    `turn` is set when the prompt has its blocks, or has ended without.
    """

    request: WorkRequest
    done: asyncio.Future[Finished] = field(default_factory=asyncio.Future)
    has_ticket: bool = False
    turn: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.token_ids)

    async def finished(self, its_turn: Awaitable[None]) -> Finished:
        """Waits for its turn and then for the first token.

        Raises:
            DeadlineExceeded: the request's time is up.
            BatonError: what the prompt failed with.
        """
        try:
            async with asyncio.timeout_at(self.request.deadline):
                await its_turn
                return await self.done
        except TimeoutError:
            raise DeadlineExceeded(f"request {self.request.request_id} ran out of time in prefill") from None

    def computed_tokens(self, cached_tokens: int) -> int:
        """Prompt tokens that were computed here for a client."""
        return 0 if self.request.is_trial else self.num_tokens - cached_tokens

    def result(self, finished: Finished, worker_id: str) -> PrefillResult:
        """What the caller gets."""
        return PrefillResult(
            first_tokens=finished.first_tokens,
            usage=Usage(prompt_tokens=self.num_tokens, cached_tokens=finished.cached_tokens),
            stages=finished.stages,
            worker_id=worker_id,
        )

    def finish(self, finished: Finished) -> None:
        """Answers the caller; ignored once answered."""
        self.turn.set()
        if not self.done.done():
            self.done.set_result(finished)

    def fail(self, error: BatonError) -> None:
        """Fails the caller; ignored once answered."""
        self.turn.set()
        if not self.done.done():
            self.done.set_exception(error)
