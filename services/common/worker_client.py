"""Client of WorkerService."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import grpc
from baton.v1 import worker_pb2 as pb
from baton.v1 import worker_pb2_grpc

from services.common.block_journal import BlockChanges
from services.common.check_item import CheckItem
from services.common.convert import load_from_proto, tier_to_proto, worker_from_proto
from services.common.echo import Echo, comes
from services.common.errors import PeerUnreachable
from services.common.rpc.channel import answered, rpc_errors
from services.common.rpc.tracing import trace_metadata
from services.common.types import Load, Tier, WorkerInfo

DEFAULT_INTERVAL_MS = 100
DEFAULT_HEARTBEAT_S = 0.5

# A worker speaks at least every 5 intervals; the rest of a heartbeat is for the way.
_INTERVALS_PER_HEARTBEAT = 7.5
# After so many heartbeats without a word the watch is given up; whoever listens may have lost patience before.
_MOST_MISSED = 8
# Of its blocks it tells at least every 5 intervals, too; after 30 silent ones, and never sooner than this, it is dead.
_SILENT_INTERVALS = 30
_MIN_SILENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A worker's load, and the incarnation that reports it."""

    incarnation: str
    load: Load


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What came into a worker's prefix cache and what left it; where `is_restart`, all told before is void."""

    incarnation: str
    is_restart: bool
    changes: BlockChanges


class WorkerClient:
    """Asks one worker; `peer` names it in errors. The channel stays the caller's."""

    def __init__(self, channel: grpc.aio.Channel, peer: str) -> None:
        self._stub = worker_pb2_grpc.WorkerServiceStub(channel)
        self._peer = peer

    async def describe(self, timeout_s: float = 5.0) -> tuple[WorkerInfo, Load]:
        """Says what the worker is and how busy.

        Raises:
            BatonError: typically PeerUnreachable or DeadlineExceeded.
        """
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.Describe(pb.DescribeRequest(), timeout=timeout_s, metadata=trace_metadata()),
                self._peer,
            )
        return worker_from_proto(response.worker), load_from_proto(response.load)

    async def watch_load(self, heartbeat_s: float = DEFAULT_HEARTBEAT_S) -> AsyncGenerator[LoadReport | None, None]:
        """Yields the load, now and after changes, and None for every heartbeat that the worker was silent for.

        One that reports but owes an answer for a heartbeat or more does not hear this process, and is silent as well.
        Ends when the worker stops; close the generator to end the watch. A heartbeat in which this process itself stood
        still does not count, because what came meanwhile has yet to be read.

        Raises:
            PeerUnreachable: the worker died, or has been silent for far too long.
        """
        interval_ms = round(heartbeat_s * 1000 / _INTERVALS_PER_HEARTBEAT)
        silence_s = _MOST_MISSED * heartbeat_s
        call = self._stub.WatchLoad(pb.WatchLoadRequest(interval_ms=interval_ms))
        # A read that is cancelled ends its call, so one read stays for as long as it takes.
        reading = asyncio.ensure_future(self._read(call, silence_s))
        echo = Echo(lambda: self.describe(silence_s), heartbeat_s)
        echo.start()
        missed = 0
        try:
            while True:
                if not await comes(reading, heartbeat_s):
                    yield None
                    continue
                if not isinstance(response := await reading, pb.WatchLoadResponse):
                    return
                reading = asyncio.ensure_future(self._read(call, silence_s))
                if not echo.missed:
                    missed = 0
                    yield LoadReport(response.incarnation, load_from_proto(response.load))
                elif echo.missed > missed:
                    missed += 1
                    yield None
        finally:
            call.cancel()
            reading.cancel()
            await asyncio.gather(reading, echo.close(), return_exceptions=True)

    async def watch_blocks(self, interval_ms: int = DEFAULT_INTERVAL_MS) -> AsyncGenerator[BlockReport, None]:
        """Yields what the prefix cache holds, then what changes; close the generator to end the watch.

        Raises:
            PeerUnreachable: the worker died, or has been silent for far too long.
        """
        call = self._stub.WatchBlocks(pb.WatchBlocksRequest(interval_ms=interval_ms))
        try:
            while isinstance(response := await self._read(call, _silence_s(interval_ms)), pb.WatchBlocksResponse):
                changes = BlockChanges(tuple(response.added), tuple(response.removed))
                yield BlockReport(response.incarnation, response.restart, changes)
        finally:
            call.cancel()

    async def check(self, timeout_s: float) -> tuple[CheckItem, ...]:
        """Has everything tried out that a request needs of the worker.

        Raises:
            BatonError: the worker cannot be asked; what is wrong with it is in the items.
        """
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.Check(pb.CheckRequest(), timeout=timeout_s, metadata=trace_metadata()), self._peer
            )
        return tuple(
            CheckItem(
                name=item.name,
                latency_ns=item.latency_ns,
                age_ns=item.age_ns,
                error=item.error,
                message=item.message,
            )
            for item in response.items
        )

    async def drain(self, timeout_s: float, move_after_s: float | None = None) -> int:
        """Asks the worker to drain and waits for it; gives the requests that remained at the end.

        What still runs after `move_after_s` is sent on to other workers; None leaves that to the worker's settings.

        Raises:
            BatonError: typically PeerUnreachable.
        """
        request = pb.DrainRequest(move_after_ms=None if move_after_s is None else round(move_after_s * 1000))
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.Drain(request, timeout=timeout_s, metadata=trace_metadata()), self._peer
            )
        return response.remaining_requests

    async def switch_role(self, tier: Tier, timeout_s: float, move_after_s: float | None = None) -> WorkerInfo:
        """Makes the worker serve another tier; gives what it is then.

        Raises:
            RoleRefused: it could not, and is what it was.
            BatonError: typically PeerUnreachable.
        """
        move_after_ms = None if move_after_s is None else round(move_after_s * 1000)
        request = pb.SwitchRoleRequest(tier=tier_to_proto(tier), move_after_ms=move_after_ms)
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.SwitchRole(request, timeout=timeout_s, metadata=trace_metadata()), self._peer
            )
        return worker_from_proto(response.worker)

    async def _read(self, call: Any, silence_s: float) -> object:
        """The next message of a watch."""
        try:
            with rpc_errors(self._peer):
                async with asyncio.timeout(silence_s):
                    return await call.read()
        except TimeoutError as error:
            raise PeerUnreachable(f"{self._peer} has not reported for {silence_s:.0f} s") from error


def _silence_s(interval_ms: int) -> float:
    return max(_MIN_SILENCE_S, _SILENT_INTERVALS * interval_ms / 1000)
