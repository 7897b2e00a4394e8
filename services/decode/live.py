"""A request whose caller still reads."""

import asyncio
import time
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from services.common.errors import BatonError, DeadlineExceeded
from services.common.priority import Priority
from services.common.types import ChoiceTokens, WorkRequest
from services.decode.messages import Reserved
from services.decode.plan import queue_class
from services.decode.stream import TokenStream

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class LiveRequest:
    """`reserved` comes when it has blocks; `is_submitted` once the engine thread knows it. Loop-owned.

    `seat` is the key of what it holds of the worker's seats, 0 for nothing yet.
    """

    key: int
    request: WorkRequest
    stream: TokenStream
    reserved: asyncio.Future[Reserved] = field(default_factory=asyncio.Future)
    is_submitted: bool = False
    seat: int = 0
    has_kv: bool = False
    began: float = field(default_factory=time.monotonic)
    _limit: asyncio.Timeout | None = None

    @property
    def is_taking_over(self) -> bool:
        """True from its admission until all KV of a handed-over prompt has come."""
        return self.request.handoff is not None and not self.has_kv

    async def in_time(self, work: Awaitable[T]) -> T:
        """Awaits a phase of the request, in the caller's task: one of its own could outlive the request's blocks.

        Raises:
            DeadlineExceeded: the request's time is up.
            BatonError: the request failed, or was ended by `fail`.
        """
        try:
            async with asyncio.timeout_at(self.request.deadline) as self._limit:
                return await work
        except TimeoutError:
            late = DeadlineExceeded(f"request {self.request.request_id} ran out of time in decode")
            raise self.stream.error or late from None
        finally:
            self._limit = None

    @property
    def priority(self) -> Priority:
        """Its class in the worker's queues."""
        return queue_class(self.request)

    @property
    def num_choices(self) -> int:
        """Slots that it will take."""
        return len(self.request.emitted) or self.request.sampling.n

    def fail(self, error: BatonError) -> None:
        """Ends the request with an error, whatever it waits for."""
        self.stream.fail(error)
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(0.0)


def goes_on(first_tokens: Iterable[ChoiceTokens]) -> dict[int, int]:
    """First token of every choice that did not end with it."""
    return {choice.choice: choice.tokens[0].id for choice in first_tokens if choice.finish is None}


def oldest_handoff_ms(requests: Iterable[LiveRequest]) -> int:
    """Age of the oldest handoff whose KV has not all come, in milliseconds; 0 where there is none."""
    now = time.monotonic()
    return max((round((now - live.began) * 1000) for live in requests if live.is_taking_over), default=0)
