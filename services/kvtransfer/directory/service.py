"""KvDirectoryService: the registry behind gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from baton.v1 import kv_directory_pb2 as pb
from baton.v1 import kv_directory_pb2_grpc

from services.common.changes import Changes
from services.common.errors import Overloaded
from services.common.log import get_logger
from services.common.rpc.limits import SMALL_REQUEST_BYTES
from services.common.rpc.server import Binding
from services.kvtransfer.directory import convert
from services.kvtransfer.directory.metrics import DirectoryMetrics
from services.kvtransfer.directory.registry import Registry

FULL_NAME = "baton.v1.KvDirectoryService"

MAX_WATCHERS = 1024
# Many joins at once become a few snapshots.
MIN_PUSH_INTERVAL_S = 0.02
# Waking up this share of a lease too late means that the process was stopped or starved.
STALL_SHARE = 0.25
# How often to wake up, as a share of a lease: a stall that ends just before a lease does must be seen, too.
LOOK_SHARE = 0.125

Context = grpc.aio.ServicerContext[Any, Any]

_log = get_logger(__name__)


class DirectoryServicer(kv_directory_pb2_grpc.KvDirectoryServiceServicer):
    """Serves one registry; `start` also ends leases in time, `close` ends that and all watches."""

    def __init__(self, registry: Registry, metrics: DirectoryMetrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self._changes = Changes()
        self._watchers = 0
        self._expiry: asyncio.Task[None] | None = None

    def binding(self) -> Binding:
        """How to mount it."""
        return Binding(
            FULL_NAME, self, kv_directory_pb2_grpc.add_KvDirectoryServiceServicer_to_server, SMALL_REQUEST_BYTES
        )

    def start(self, on_failure: Callable[[BaseException], None]) -> None:
        """Starts to end leases; `on_failure` hears of an error that stopped that."""
        self._show()
        self._expiry = asyncio.create_task(self._expire(), name="directory-expiry")

        def report(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                on_failure(error)

        self._expiry.add_done_callback(report)

    async def close(self) -> None:
        """Ends all watches and the expiry; idempotent."""
        self._changes.close()
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)

    def stats(self) -> dict[str, int]:
        """Members by tier, refused pairs, and watches that run now."""
        return {**self._registry.stats(), "watchers": self._watchers}

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:
        """Joins or renews."""
        worker = convert.registered_worker(request)
        revision = self._registry.revision
        refused = self._registry.register(worker, time.monotonic())
        is_changed = self._registry.revision != revision
        (self._metrics.registrations if is_changed else self._metrics.renewals).inc()
        if is_changed:
            _log.info(
                "worker_registered",
                worker_id=worker.worker_id,
                incarnation=worker.incarnation,
                tier=worker.tier.value,
                address=worker.address,
                refused_pairs=len(refused),
            )
            self._changed()
        return pb.RegisterResponse(
            lease_ms=round(self._registry.lease_s * 1000),
            refused_pairs=[convert.refused_to_proto(pair) for pair in refused],
        )

    async def Deregister(self, request: pb.DeregisterRequest, context: Context) -> pb.DeregisterResponse:
        """Leaves; of no effect for any but the registered incarnation."""
        if self._registry.deregister(request.worker_id, request.incarnation):
            _log.info("worker_deregistered", worker_id=request.worker_id, incarnation=request.incarnation)
            self._changed()
        return pb.DeregisterResponse()

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """Streams snapshots until the caller leaves or the directory stops."""
        if self._watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} watches run already; close some first", retry_after_s=1.0)
        self._watchers += 1
        self._show()
        try:
            while not self._changes.is_closed:
                seen = self._changes.count
                yield convert.membership_to_proto(self._registry.membership())
                await self._changes.wait_closed(MIN_PUSH_INTERVAL_S)
                await self._changes.wait(seen)
        finally:
            self._watchers -= 1
            self._show()

    async def _expire(self) -> None:
        """Sleeps until the earliest lease may end, and never long enough to miss that the process stood still."""
        while True:
            now = time.monotonic()
            planned = min(self._expire_once(now), now + self._registry.lease_s * LOOK_SHARE)
            await asyncio.sleep(max(0.0, planned - time.monotonic()))
            now = time.monotonic()
            stalled_s = now - planned
            if stalled_s > self._registry.lease_s * STALL_SHARE:
                # Renewals wait in the sockets of a process that was stopped; they need time to be read.
                self._registry.renew_all(now)
                _log.warning("directory_stalled", seconds=round(stalled_s, 3))

    def _expire_once(self, now: float) -> float:
        """Drops whose lease has ended; gives when to look again."""
        gone = self._registry.expire(now)
        for worker in gone:
            self._metrics.expirations.inc()
            _log.warning("worker_expired", worker_id=worker.worker_id, incarnation=worker.incarnation)
        if gone:
            self._changed()
        next_expiry = self._registry.next_expiry()
        return now + self._registry.lease_s if next_expiry is None else next_expiry

    def _changed(self) -> None:
        self._changes.notify()
        self._show()

    def _show(self) -> None:
        self._metrics.show(self.stats())
