"""WorkerService: what operators, frontends and peers ask any worker."""

import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import grpc
from baton.v1 import worker_pb2 as pb
from baton.v1 import worker_pb2_grpc

from services.common.block_journal import BlockJournal, BlockNews
from services.common.changes import Changes
from services.common.check_item import CheckItem
from services.common.convert import load_to_proto, tier_from_proto, worker_to_proto
from services.common.errors import FieldViolation, InvalidRequest, NotFound, Overloaded, RoleRefused
from services.common.rpc.channel import deadline_of
from services.common.rpc.limits import SMALL_REQUEST_BYTES
from services.common.rpc.server import Binding
from services.common.types import Load, Tier, WorkerInfo

FULL_NAME = "baton.v1.WorkerService"

DEFAULT_INTERVAL_MS = 100
MIN_INTERVAL_MS = 10
MAX_INTERVAL_MS = 10_000
# A watcher hears from the worker at least every so many intervals.
HEARTBEAT_INTERVALS = 5
MAX_WATCHERS = 256
# Block hashes in one message; 256 KiB.
MAX_HASHES = 2**15

DEFAULT_DRAIN_S = 30.0
DEFAULT_CHECK_S = 10.0
# Left for the answer to get back before the caller's deadline.
_ANSWER_MARGIN_S = 0.2

# How long the old role of a worker may take to end where the caller sets no deadline.
DEFAULT_SWITCH_S = 60.0

# Makes the worker one of another tier by a deadline (monotonic); as `WorkerState.drain` otherwise.
SwitchRole = Callable[[Tier, float, float | None], Awaitable[WorkerInfo]]

Context = grpc.aio.ServicerContext[Any, Any]


class WorkerState(Protocol):
    """What a worker tells about itself; all methods run on the event loop."""

    @property
    def blocks(self) -> BlockJournal:
        """What its prefix cache holds."""
        ...

    def info(self) -> WorkerInfo:
        """Says what the worker is."""
        ...

    def load(self) -> Load:
        """Says how busy it is now; must be cheap."""
        ...

    async def drain(self, deadline: float, move_after_s: float | None = None) -> int:
        """Takes no new requests and waits for the running ones until `deadline` (monotonic); gives what remains.

        What runs after `move_after_s` is sent on to other workers; None leaves that to the worker.
        """
        ...


# Tries everything out by a deadline (monotonic).
DeepCheck = Callable[[float], Awaitable[Sequence[CheckItem]]]


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Serves a `WorkerState`; the worker calls `changes.notify()` when its load changed and `close()` when it stops."""

    def __init__(
        self,
        state: WorkerState,
        changes: Changes,
        switch_role: SwitchRole | None = None,
        check: DeepCheck | None = None,
    ) -> None:
        self._state = state
        self._check = check
        self._changes = changes
        self._switch_role = switch_role
        self._watchers = 0
        self._block_watchers = 0

    def binding(self) -> Binding:
        """How to mount it."""
        return Binding(FULL_NAME, self, worker_pb2_grpc.add_WorkerServiceServicer_to_server, SMALL_REQUEST_BYTES)

    def close(self) -> None:
        """Ends all watches."""
        self._changes.close()

    def stats(self) -> dict[str, int]:
        """Watches that run now."""
        return {"load_watchers": self._watchers, "block_watchers": self._block_watchers}

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """Says what the worker is and how busy."""
        return pb.DescribeResponse(worker=worker_to_proto(self._state.info()), load=load_to_proto(self._state.load()))

    async def WatchLoad(self, request: pb.WatchLoadRequest, context: Context) -> AsyncIterator[pb.WatchLoadResponse]:
        """Streams the load until the caller leaves or the worker stops."""
        interval_s = _interval_ms(request.interval_ms) / 1000
        if self._watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} watches run already; close some first", retry_after_s=1.0)
        self._watchers += 1
        try:
            while not self._changes.is_closed:
                seen = self._changes.count
                yield pb.WatchLoadResponse(
                    incarnation=self._state.info().incarnation, load=load_to_proto(self._state.load())
                )
                await self._changes.wait_closed(interval_s)
                await self._changes.wait(seen, interval_s * (HEARTBEAT_INTERVALS - 1))
        finally:
            self._watchers -= 1

    async def WatchBlocks(
        self, request: pb.WatchBlocksRequest, context: Context
    ) -> AsyncIterator[pb.WatchBlocksResponse]:
        """Streams what the prefix cache holds until the caller leaves or the worker stops."""
        interval_s = _interval_ms(request.interval_ms) / 1000
        if self._block_watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} watches run already; close some first", retry_after_s=1.0)
        self._block_watchers += 1
        position: int | None = None
        try:
            while not self._changes.is_closed:
                news = self._state.blocks.since(position)
                position = news.position
                for message in _block_messages(news, self._state.info().incarnation):
                    yield message
                await self._changes.wait_closed(interval_s)
                await self._blocks_changed(position, interval_s * (HEARTBEAT_INTERVALS - 1))
        finally:
            self._block_watchers -= 1

    async def _blocks_changed(self, position: int, timeout_s: float) -> None:
        """Waits until the cache holds something else, or the time is up."""
        deadline = time.monotonic() + timeout_s
        while self._state.blocks.position == position and not self._changes.is_closed:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not await self._changes.wait(self._changes.count, left_s):
                return

    async def Check(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:
        """Tries everything out within the call's deadline."""
        if self._check is None:
            raise NotFound("this worker has no deep check")
        deadline = deadline_of(context, DEFAULT_CHECK_S)
        items = await self._check(_with_margin(deadline))
        return pb.CheckResponse(items=[pb.CheckItem(**dataclasses.asdict(item)) for item in items])

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        """Drains until the call's deadline."""
        deadline = _with_margin(deadline_of(context, DEFAULT_DRAIN_S))
        return pb.DrainResponse(remaining_requests=await self._state.drain(deadline, _move_after_s(request)))

    async def SwitchRole(self, request: pb.SwitchRoleRequest, context: Context) -> pb.SwitchRoleResponse:
        """Takes another tier until the call's deadline."""
        tier = tier_from_proto(request.tier)
        if tier is None:
            raise InvalidRequest(FieldViolation("tier", "must be prefill, decode or colocated"))
        if self._switch_role is None:
            raise RoleRefused("this process has one role only; start another one")
        deadline = _with_margin(deadline_of(context, DEFAULT_SWITCH_S))
        worker = await self._switch_role(tier, deadline, _move_after_s(request))
        return pb.SwitchRoleResponse(worker=worker_to_proto(worker))


def _block_messages(news: BlockNews, incarnation: str) -> Iterator[pb.WatchBlocksResponse]:
    """The news in messages of a bounded size; at least one, so that the watcher hears something."""
    added, removed = news.changes.added, news.changes.removed
    for start in range(0, max(1, len(added), len(removed)), MAX_HASHES):
        end = start + MAX_HASHES
        yield pb.WatchBlocksResponse(
            incarnation=incarnation,
            restart=news.is_whole and start == 0,
            added=added[start:end],
            removed=removed[start:end],
        )


def _with_margin(deadline: float) -> float:
    """The deadline of the work, so that its answer arrives before the caller's."""
    return deadline - min(_ANSWER_MARGIN_S, (deadline - time.monotonic()) / 2)


def _move_after_s(request: pb.DrainRequest | pb.SwitchRoleRequest) -> float | None:
    if not request.HasField("move_after_ms"):
        return None
    if request.move_after_ms < 0:
        raise InvalidRequest(FieldViolation("move_after_ms", f"is {request.move_after_ms}, must not be negative"))
    return request.move_after_ms / 1000


def _interval_ms(asked: int) -> int:
    if asked < 0 or asked > MAX_INTERVAL_MS:
        raise InvalidRequest(FieldViolation("interval_ms", f"is {asked}, must be in [0, {MAX_INTERVAL_MS}]"))
    return max(MIN_INTERVAL_MS, asked or DEFAULT_INTERVAL_MS)
