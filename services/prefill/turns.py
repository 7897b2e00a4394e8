"""Prompts that wait for their first chunk: bounded, by rank, measured, and the source of hints when to come back."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Generator, Sequence

from services.common.displacement import turned_away
from services.common.drain_rate import DrainRate
from services.common.errors import QueueExpired, QueueFull
from services.common.line import Verdict
from services.common.priority import rank
from services.common.queue_metrics import QueueMetrics
from services.prefill.admission import PrefillLimits
from services.prefill.live import LivePrompt


class Turns:
    """Everything here runs on the event loop. A prompt waits at most `queue_ttl_s` seconds.

    A full queue keeps the best: a newcomer takes the place of the last in rank where it comes before it. Prompts that
    have had their turn take room, too, and keep it until they have ended.
    """

    def __init__(self, limits: PrefillLimits, metrics: QueueMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._drain = DrainRate()
        self._ranks: dict[LivePrompt, float] = {}
        self._tokens = 0

    @contextlib.contextmanager
    def entering(self, live: LivePrompt) -> Generator[None]:
        """Takes a prompt in, unless what is done inside fails; `ended` must follow. Those that it displaces fail.

        Raises:
            QueueFull: there is no room for it, and nobody to displace.
        """
        order = rank(live.request.priority, time.monotonic(), self._limits.priority_aging_s)
        if not self._limits.has_room(len(self._ranks) + 1, self._tokens + live.num_tokens):
            self._make_room(live, order)
        self._ranks[live] = order
        self._tokens += live.num_tokens
        try:
            yield
        except BaseException:
            self.ended(live)
            raise

    async def wait(self, live: LivePrompt) -> None:
        """Waits until a prompt has its blocks, or has ended without.

        Raises:
            QueueExpired: there was no room for it in time, or no decode worker had a seat for it.
        """
        arrived = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.queue_ttl_s):
                await live.turn.wait()
        except TimeoutError:
            reason = Verdict.EXPIRED.value
            self._metrics.shed(live.request.priority, reason)
            message = f"the prompt waited {self._limits.queue_ttl_s:g} s for KV blocks or for a decode worker that asks"
            raise QueueExpired(
                f"{message}; try again later", details={"reason": reason}, retry_after_s=self.retry_after_s()
            ) from None
        if live in self._ranks:
            self._metrics.waited(live.request.priority, time.monotonic() - arrived)

    def ended(self, live: LivePrompt) -> None:
        """A prompt is done, or has given up; only one that had its turn has made room. Idempotent."""
        if live in self._ranks:
            self._forget(live)
            if live.turn.is_set():
                self._drain.note(time.monotonic())

    def retry_after_s(self) -> float:
        """When to come back, as measured."""
        return self._drain.retry_after_s(len(self._waiting()) + 1, time.monotonic())

    def _make_room(self, live: LivePrompt, order: float) -> None:
        """Turns away who comes last: the newcomer, or those behind it."""
        waiting = self._waiting()
        line = sorted((*waiting, live), key=lambda each: self._ranks.get(each, order))
        in_turn = len(self._ranks) - len(waiting)
        in_turn_tokens = self._tokens - sum(each.num_tokens for each in waiting)
        tokens = list(itertools.accumulate((each.num_tokens for each in line), initial=in_turn_tokens))
        for each in turned_away(line, live, lambda kept: self._limits.has_room(in_turn + kept, tokens[kept])):
            error = self._full(each, Verdict.FULL if each is live else Verdict.DISPLACED)
            if each is live:
                raise error
            self._forget(each)
            each.fail(error)

    def _forget(self, live: LivePrompt) -> None:
        del self._ranks[live]
        self._tokens -= live.num_tokens

    def _waiting(self) -> Sequence[LivePrompt]:
        return [each for each in self._ranks if not each.turn.is_set()]

    def _full(self, live: LivePrompt, verdict: Verdict) -> QueueFull:
        self._metrics.shed(live.request.priority, verdict.value)
        cause = "prompts of higher priority took its place" if verdict is Verdict.DISPLACED else "that is all"
        message = f"the worker has {len(self._ranks)} prompts; {cause}; retry later or elsewhere"
        return QueueFull(message, details={"reason": verdict.value}, retry_after_s=self.retry_after_s())
