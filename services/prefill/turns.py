"""Waits of prompts for their first chunk: bounded, measured, and the source of hints when to come back."""

import asyncio
import time

from services.common.drain_rate import DrainRate
from services.common.errors import QueueExpired
from services.common.queue_metrics import QueueMetrics
from services.prefill.live import LivePrompt


class Turns:
    """Everything here runs on the event loop. A prompt waits at most `ttl_s` seconds."""

    def __init__(self, ttl_s: float, metrics: QueueMetrics) -> None:
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._drain = DrainRate()
        self._num_waiting = 0

    async def wait(self, live: LivePrompt) -> None:
        """Waits until a prompt has its blocks, or has ended without.

        Raises:
            QueueExpired: there was no room for it in time, or no decode worker had a seat for it.
        """
        arrived = time.monotonic()
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._ttl_s):
                await live.turn.wait()
        except TimeoutError:
            self._metrics.shed(live.request.priority, "expired")
            message = f"the prompt waited {self._ttl_s:g} s for KV blocks or for a decode worker that asks for it"
            raise QueueExpired(
                f"{message}; try again later", details={"reason": "expired"}, retry_after_s=self.retry_after_s()
            ) from None
        finally:
            self._num_waiting -= 1
        self._metrics.waited(live.request.priority, time.monotonic() - arrived)

    def ended(self, live: LivePrompt) -> None:
        """A prompt is done, or has given up; only one that had its turn has made room."""
        if live.turn.is_set():
            self._drain.note(time.monotonic())

    def retry_after_s(self) -> float:
        """When to come back, as measured."""
        return self._drain.retry_after_s(self._num_waiting + 1, time.monotonic())
