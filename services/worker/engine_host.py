"""An engine thread as the event loop sees it: commands in, reports out, each in order."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from services.engine.thread import EngineThread, StepLoop

STOP_TIMEOUT_S = 8.0

C = TypeVar("C")
R = TypeVar("R")
T = TypeVar("T")


class EngineHost(Generic[C, R]):
    """Owns an engine thread; create it on the event loop.

    Args:
        name: of the thread.
        make_loop: builds what the thread drives; gets the function through which that reports, on any thread.
        max_commands: bound of the thread's inbox.
        on_report: called on the event loop with every report.
        on_failure: called on the event loop, once, when the thread has died.
    """

    def __init__(
        self,
        name: str,
        make_loop: Callable[[Callable[[R], None]], StepLoop[C]],
        *,
        max_commands: int,
        on_report: Callable[[R], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread: EngineThread[C] = EngineThread(
            name,
            make_loop(lambda report: self._hop(on_report, report)),
            max_commands=max_commands,
            on_failure=lambda error: self._hop(on_failure, error),
        )
        self.start = self._thread.start
        self.post = self._thread.post
        self.tell = self._thread.tell
        self.stats = self._thread.stats

    async def close(self) -> None:
        """Ends the thread after its current step."""
        await asyncio.to_thread(self._thread.stop, STOP_TIMEOUT_S)

    def _hop(self, receive: Callable[[T], None], value: T) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(receive, value)
