"""Follows what one worker's prefix cache holds, for policies that want to know.

A hint: when the watch breaks, nothing is known until it is back, and routing goes by load alone.
"""

import asyncio
import contextlib
from collections.abc import Set as AbstractSet

from services.common.errors import BatonError, PeerUnreachable
from services.common.log import get_logger
from services.common.types import WorkerInfo
from services.common.worker_client import BlockReport, WorkerClient

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0

_log = get_logger(__name__)


class BlockWatch:
    """Watches one incarnation of one worker until it is closed; holds one hash for each of its blocks at most.

    Thread: the event loop's only.
    """

    def __init__(self, worker: WorkerInfo, client: WorkerClient) -> None:
        self._worker = worker
        self._client = client
        self._known: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def known(self) -> AbstractSet[int]:
        """Short hashes of the blocks in the cache; changes in place."""
        return self._known

    def start(self) -> None:
        """Begins to watch."""
        self._task = asyncio.create_task(self._keep_watching(), name=f"watch-blocks-{self._worker.worker_id}")

    async def close(self) -> None:
        """Ends the watch.

        Cancel: safe; call again to finish.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._known.clear()

    async def _keep_watching(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with contextlib.aclosing(self._client.watch_blocks()) as reports:
                    async for report in reports:
                        self._apply(report)
                        pause_s = _FIRST_PAUSE_S
            except BatonError as error:
                _log.info("block_watch_lost", worker_id=self._worker.worker_id, error=type(error).__name__)
            except Exception as error:  # noqa: BLE001 - a watch that ended would leave stale blocks for ever
                _log.error("block_watch_failed", worker_id=self._worker.worker_id, exc_info=error)
            self._known.clear()
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def _apply(self, report: BlockReport) -> None:
        """Brings what is known up to date.

        Raises:
            PeerUnreachable: another incarnation reports, or more blocks than the worker has.
        """
        if report.incarnation != self._worker.incarnation:
            raise PeerUnreachable(f"{self._worker.worker_id} was restarted")
        if report.is_restart:
            self._known.clear()
        self._known.difference_update(report.changes.removed)
        self._known.update(report.changes.added)
        if len(self._known) > self._worker.total_blocks:
            raise PeerUnreachable(f"{self._worker.worker_id} reports more blocks than it has")
