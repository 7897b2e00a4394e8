"""Watches whether a worker's engine thread moves.

A worker whose event loop hangs does not answer at all. One whose engine thread hangs in a step answers, but is of no
use: it is neither live nor ready then, and tells its peers that it takes nothing new. Both end when the step does.
"""

import asyncio
from collections.abc import Callable

from services.common.errors import EngineStalled
from services.common.log import get_logger
from services.common.worker_service import WorkerState
from services.worker.watchdog import Watchdog

_LOOKS = 10

_log = get_logger(__name__)


class Liveness:
    """Looks at a worker from `start` to `close`; `on_change` hears whether it is live.

    Args:
        worker: Whose load tells of the turns of its engine thread.
        limit_s: Longest time that one turn may take; 0 never looks.
        on_change: Called on the event loop.
    """

    def __init__(self, worker: WorkerState, limit_s: float, on_change: Callable[[bool], None]) -> None:
        self._worker = worker
        self._limit_s = limit_s
        self._on_change = on_change
        self._watchdog = Watchdog(_LOOKS)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look."""
        if self._limit_s:
            self._task = asyncio.create_task(self._look(), name="liveness")

    async def close(self) -> None:
        """Looks no more; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def check(self) -> None:
        """Says whether the engine moves.

        Raises:
            EngineStalled: it does not.
        """
        if self._watchdog.is_stalled:
            worker_id = self._worker.info().worker_id
            message = f"a step of worker {worker_id} has taken more than {self._limit_s:g} s; use another one"
            raise EngineStalled(f"{message} and restart it")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._limit_s / _LOOKS)
            counters = self._worker.load().counters
            if self._watchdog.look(counters["engine_turns"], is_busy=bool(counters["engine_busy"])):
                is_live = not self._watchdog.is_stalled
                (_log.info if is_live else _log.error)("liveness_changed", live=is_live, limit_s=self._limit_s)
                self._on_change(is_live)
