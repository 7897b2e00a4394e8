"""A bounded number of places to hold, and a bounded line for them: `Line` on an event loop."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TypeVar

from services.common.errors import Overloaded, QueueExpired, QueueFull
from services.common.line import Line, LineLimits, Outcome, Verdict
from services.common.priority import Priority
from services.common.queue_metrics import QueueMetrics

T = TypeVar("T")


class Places:
    """Everything here runs on one event loop. `owner` names in messages who has the places."""

    def __init__(self, limits: LineLimits, metrics: QueueMetrics, owner: str) -> None:
        self._limits = limits
        self._metrics = metrics
        self._owner = owner
        self._line = Line(limits)
        self._keys = itertools.count(1)
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def hold(self, priority: Priority = Priority.NORMAL, count: int = 1) -> AsyncGenerator[None, None]:
        """Takes places, and gives them back at the end; see `take`."""
        key = await self.take(priority, count)
        try:
            yield
        finally:
            self.give_back(key)

    async def take(self, priority: Priority, count: int = 1) -> int:
        """Waits for `count` places, within the TTL of the line; gives the key for `give_back`.

        Cancel: safe; places that were just given are passed on.

        Raises:
            QueueFull: the line is full, or those of a higher priority filled it.
            QueueExpired: it waited longer than anybody may.
        """
        key = next(self._keys)
        try:
            await self._enter(key, priority, count)
        except BaseException:
            self.give_back(key)
            raise
        return key

    async def in_turn(self, priority: Priority, work: Awaitable[T]) -> T:
        """Awaits what the holder of a place needs next, at most as long as anybody may wait in the line.

        Raises:
            QueueExpired: it did not come in time.
        """
        try:
            async with asyncio.timeout(self._limits.ttl_s):
                return await work
        except TimeoutError:
            self._metrics.shed(priority, Verdict.EXPIRED.value)
            message = f"{self._owner} had no room for the request within {self._limits.ttl_s:g} s; try again later"
            details = {"reason": Verdict.EXPIRED.value}
            raise QueueExpired(message, details=details, retry_after_s=self.retry_after_s()) from None

    def give_back(self, key: int) -> None:
        """Frees places that were taken; idempotent."""
        self._apply(self._line.leave(key, time.monotonic()))

    def retry_after_s(self) -> float:
        """When to come back, as measured."""
        return self._line.retry_after_s(time.monotonic())

    @property
    def num_held(self) -> int:
        """Places that are held."""
        return self._line.num_held

    @property
    def num_holders(self) -> int:
        """Requests that hold places."""
        return self._line.num_holders

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place."""
        return self._line.num_waiting

    async def _enter(self, key: int, priority: Priority, count: int) -> None:
        waiter = self._waiters[key] = asyncio.get_running_loop().create_future()
        try:
            self._apply(self._line.arrive(key, priority, time.monotonic(), count))
            await waiter
        finally:
            del self._waiters[key]

    def _apply(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            waiter = self._waiters[outcome.key]
            if outcome.verdict is Verdict.ADMITTED:
                self._metrics.waited(outcome.priority, outcome.waited_s)
                if not waiter.done():
                    waiter.set_result(None)
            else:
                self._metrics.shed(outcome.priority, outcome.verdict.value)
                if not waiter.done():
                    waiter.set_exception(self._error(outcome))
        self._arm()

    def _error(self, outcome: Outcome) -> Overloaded:
        taken = f"{self._line.num_holders} requests are in work at {self._owner} and {self._line.num_waiting} wait"
        hint, details = self.retry_after_s(), {"reason": outcome.verdict.value}
        if outcome.verdict is Verdict.EXPIRED:
            message = f"the request waited {outcome.waited_s:.1f} s, longer than it may: {taken}; try again later"
            return QueueExpired(message, details=details, retry_after_s=hint)
        cause = "requests of higher priority took its place" if outcome.verdict is Verdict.DISPLACED else "that is all"
        return QueueFull(f"{taken}; {cause}; try again later", details=details, retry_after_s=hint)

    def _arm(self) -> None:
        """Sets the timer to the next one who will have waited too long."""
        if self._timer is not None:
            self._timer.cancel()
        end = self._line.next_expiry()
        self._timer = None if end is None else asyncio.get_running_loop().call_at(end, self._expire)

    def _expire(self) -> None:
        self._apply(self._line.expire(time.monotonic()))
