"""Short work that nobody waits for, but that somebody owns: giving tickets back, closing what was dropped."""

import asyncio
from collections.abc import Coroutine


class Background:
    """Runs coroutines as tasks and keeps them until they are done. Loop-owned; each coroutine is bounded by itself."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Tasks that run."""
        return len(self._tasks)

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Runs `work`, which must not raise."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finished(self) -> None:
        """Waits for what runs now."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancels what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
