"""Client of the directory: single calls, and a watch that outlives the directory."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from baton.v1 import kv_directory_pb2 as pb
from baton.v1 import kv_directory_pb2_grpc

from services.common.errors import BatonError
from services.common.log import get_logger
from services.common.rpc.channel import answered, open_channel, rpc_errors
from services.common.rpc.tracing import trace_metadata
from services.common.types import Membership, RefusedPair, WorkerInfo
from services.kvtransfer.directory.config import DEFAULT_LEASE_S
from services.kvtransfer.directory.convert import membership_from_proto, refused_from_proto, register_request
from services.kvtransfer.directory.view import Hears, MembershipView

CALL_TIMEOUT_S = 5.0
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """Answer to a registration: how long it holds, and with whom the worker must not be paired."""

    lease_s: float
    refused_pairs: tuple[RefusedPair, ...]


class DirectoryClient:
    """Calls one directory; owns its channel. Create it on the event loop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = open_channel(address)
        self._stub = kv_directory_pb2_grpc.KvDirectoryServiceStub(self._channel)
        self._peer = f"directory {address}"

    async def close(self) -> None:
        """Closes the channel and ends all calls on it."""
        await self._channel.close()

    async def register(self, worker: WorkerInfo, timeout_s: float = CALL_TIMEOUT_S) -> Registered:
        """Joins, or renews the lease.

        Raises:
            InvalidRequest: the directory refuses the worker as it is, or a newer incarnation has replaced it.
            PeerUnreachable: the directory is away.
        """
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.Register(register_request(worker), timeout=timeout_s, metadata=trace_metadata()),
                self._peer,
            )
        pairs = tuple(refused_from_proto(pair) for pair in response.refused_pairs)
        return Registered(response.lease_ms / 1000, pairs)

    async def deregister(self, worker_id: str, incarnation: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Leaves; of no effect for any but the registered incarnation."""
        request = pb.DeregisterRequest(worker_id=worker_id, incarnation=incarnation)
        with rpc_errors(self._peer):
            await self._stub.Deregister(request, timeout=timeout_s, metadata=trace_metadata())

    async def watch(self) -> AsyncGenerator[Membership, None]:
        """Yields the membership, now and after every change, until the directory stops; keepalive finds a dead one.

        Raises:
            BatonError: typically PeerUnreachable; `watch_membership` goes on where this ends.
        """
        call = self._stub.Watch(pb.WatchRequest())
        try:
            while True:
                with rpc_errors(self._peer):
                    response = await call.read()
                if not isinstance(response, pb.WatchResponse):
                    return
                yield membership_from_proto(response)
        finally:
            call.cancel()


async def watch_membership(
    address: str, hears: Hears, grace_s: float = DEFAULT_LEASE_S
) -> AsyncGenerator[Membership, None]:
    """Yields what to believe about the membership, for as long as the caller asks; never ends by itself.

    The last snapshot stands while the directory is away. Members that a restarted directory does not know yet, or whose
    leases ended, are kept for `grace_s` seconds, which should be its lease, and then for as long as `hears` says that
    the caller hears them itself. Nothing is yielded before the first snapshot.

    Cancel: safe; the channel is closed.
    """
    view = MembershipView(grace_s, hears)
    snapshots: asyncio.Queue[Membership] = asyncio.Queue(maxsize=1)
    follower = asyncio.create_task(_follow(address, snapshots), name=f"directory-watch-{address}")
    believed: Membership | None = None
    try:
        while True:
            latest = await _next_belief(view, snapshots)
            if latest != believed:
                believed = latest
                yield latest
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)


async def _next_belief(view: MembershipView, snapshots: "asyncio.Queue[Membership]") -> Membership:
    """Waits for the next snapshot or for the end of a grace, whichever is first."""
    change = view.next_change()
    try:
        async with asyncio.timeout(None if change is None else max(0.0, change - time.monotonic())):
            snapshot = await snapshots.get()
    except TimeoutError:
        return view.current(time.monotonic())
    return view.update(snapshot, time.monotonic())


async def _follow(address: str, snapshots: "asyncio.Queue[Membership]") -> None:
    """Puts every snapshot into the queue, over all restarts of the directory."""
    failures = 0
    while True:
        client = DirectoryClient(address)
        try:
            async for snapshot in client.watch():
                if failures:
                    _log.info("directory_reached", directory=address)
                failures = 0
                await snapshots.put(snapshot)
            failures += 1
        except BatonError as error:
            failures += 1
            if failures == 1:
                _log.warning("directory_lost", directory=address, error=error.message)
        except Exception as error:  # noqa: BLE001 - whoever waits for snapshots would wait for ever
            failures += 1
            _log.error("directory_watch_failed", directory=address, exc_info=error)
        finally:
            await client.close()
        await asyncio.sleep(backoff_s(failures))


def backoff_s(failures: int) -> float:
    """Time to wait after so many failures in a row: doubles up to a bound, spread so that clients do not march."""
    ceiling = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2 ** min(failures, 10))
    return random.uniform(ceiling / 2, ceiling)
