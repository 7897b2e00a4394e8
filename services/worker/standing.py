"""A worker as its peers see it: what is known of it from outside is added to what it says itself."""

import dataclasses
from collections.abc import Callable

from services.common.types import Load
from services.common.worker_service import WorkerState


class Standing:
    """Passes on to a worker; one that is told to drain is no longer ready, and one that stalls takes nothing new.

    `leave` is called when the worker is told to drain; `move_after_s` is when it then sends on what runs.
    """

    def __init__(self, worker: WorkerState, leave: Callable[[], None], move_after_s: float) -> None:
        self.info = worker.info
        self.blocks = worker.blocks
        self.is_live = True
        self._worker = worker
        self._leave = leave
        self._move_after_s = move_after_s

    def load(self) -> Load:
        """How busy it is."""
        load = self._worker.load()
        return load if self.is_live else dataclasses.replace(load, draining=True)

    async def drain(self, deadline: float, move_after_s: float | None = None) -> int:
        """Says so to health watchers, then drains."""
        self._leave()
        return await self._worker.drain(deadline, self._move_after_s if move_after_s is None else move_after_s)
