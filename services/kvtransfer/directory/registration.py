"""Keeps one worker registered, whatever the directory does."""

import asyncio
from collections.abc import Callable

from services.common.errors import BatonError, InvalidRequest
from services.common.log import get_logger
from services.common.types import RefusedPair, WorkerInfo
from services.kvtransfer.directory.client import DirectoryClient, backoff_s

DEREGISTER_TIMEOUT_S = 1.0
RENEWALS_PER_LEASE = 3

_log = get_logger(__name__)


def _report(task: asyncio.Task[None]) -> None:
    """A registration ends by cancellation only; anything else is a bug, and must not go unseen until the lease ends."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("registration_ended_unexpectedly", exc_info=task.exception())


class Registration:
    """Registers a worker and renews its lease from `start` until `close`.

    A directory that is away is asked again with growing, bounded pauses; one that was restarted gets to know the worker
    with the next renewal. The worker serves on in the meantime.

    Args:
        directory: host:port.
        worker: says what to register; called for every renewal, so that changes are told.

    Create it on the event loop.
    """

    def __init__(self, directory: str, worker: Callable[[], WorkerInfo]) -> None:
        self._directory = directory
        self._worker = worker
        self._client = DirectoryClient(directory)
        self._task: asyncio.Task[None] | None = None
        self._registered = asyncio.Event()
        self._refused: tuple[RefusedPair, ...] = ()
        self._renewals = 0
        self._failures = 0

    @property
    def is_registered(self) -> bool:
        """True while the last renewal succeeded."""
        return self._registered.is_set()

    @property
    def refused_pairs(self) -> tuple[RefusedPair, ...]:
        """Pairs with this worker in them that the directory refuses."""
        return self._refused

    def start(self) -> None:
        """Begins to register; does not wait for the directory."""
        self._task = asyncio.create_task(self._keep(), name=f"registration-{self._directory}")
        self._task.add_done_callback(_report)

    async def wait_registered(self, timeout_s: float) -> bool:
        """Waits for the first success; False where the time ran out first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._registered.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stops renewing and deregisters, with a short deadline; idempotent."""
        task, self._task = self._task, None
        if task is None:
            await self._client.close()
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        worker = self._worker()
        try:
            await self._client.deregister(worker.worker_id, worker.incarnation, DEREGISTER_TIMEOUT_S)
        except BatonError as error:
            # The lease will end by itself.
            _log.info("deregistration_failed", directory=self._directory, error=error.message)
        finally:
            self._registered.clear()
            await self._client.close()

    def stats(self) -> dict[str, int]:
        """Whether registered, successful renewals, and failures in a row."""
        return {
            "registered": int(self.is_registered),
            "renewals": self._renewals,
            "registration_failures": self._failures,
        }

    async def _keep(self) -> None:
        while True:
            try:
                registered = await self._client.register(self._worker())
            except BatonError as error:
                self._on_failure(error)
                await asyncio.sleep(backoff_s(self._failures))
                continue
            self._on_success(registered.refused_pairs)
            await asyncio.sleep(registered.lease_s / RENEWALS_PER_LEASE)

    def _on_success(self, refused: tuple[RefusedPair, ...]) -> None:
        if not self.is_registered:
            _log.info("worker_joined", directory=self._directory, attempts=self._failures + 1)
        if refused != self._refused:
            for pair in refused:
                _log.warning(
                    "pair_refused", prefill=pair.prefill_worker_id, decode=pair.decode_worker_id, reason=pair.reason
                )
        self._refused, self._failures = refused, 0
        self._renewals += 1
        self._registered.set()

    def _on_failure(self, error: BatonError) -> None:
        self._failures += 1
        self._registered.clear()
        if self._failures == 1:
            log = _log.error if isinstance(error, InvalidRequest) else _log.warning
            log("registration_failed", directory=self._directory, error=error.message)
