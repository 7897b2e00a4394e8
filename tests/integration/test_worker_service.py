"""WorkerService over real sockets: what a worker tells, and how it is drained."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest

from services.common.block_journal import BlockChanges, BlockJournal
from services.common.changes import Changes
from services.common.errors import InvalidRequest, PeerUnreachable
from services.common.rpc.channel import open_channel
from services.common.rpc.server import RpcServer
from services.common.types import Load, WorkerInfo
from services.common.worker_client import BlockReport, LoadReport, WorkerClient
from services.common.worker_service import MAX_HASHES, WorkerServicer
from tests.harness.tcp_proxy import tcp_proxy
from tests.harness.workers import worker_info

WAIT_S = 20.0
# How often a watch asks for a report at most; its heartbeat is 7.5 times that.
INTERVAL_S = 0.3

T = TypeVar("T")


class ScriptedWorker:
    """A worker whose load a test sets."""

    def __init__(self) -> None:
        self.current = Load(free_blocks=8, total_blocks=8, counters={"tickets": 0})
        self.blocks = BlockJournal()
        self.drain_left_s = 0.0

    def info(self) -> WorkerInfo:
        return worker_info("p")

    def load(self) -> Load:
        return self.current

    async def drain(self, deadline: float, move_after_s: float | None = None) -> int:
        self.drain_left_s = deadline - time.monotonic()
        self.move_after_s = move_after_s
        self.current = dataclasses.replace(self.current, draining=True)
        return 3


class Served:
    """A served worker and a client to it."""

    def __init__(self, worker: ScriptedWorker, changes: Changes, servicer: WorkerServicer, server: RpcServer) -> None:
        self.worker = worker
        self.changes = changes
        self.servicer = servicer
        self.server = server
        self.port = 0

    def change(self, **load: int) -> None:
        """Sets counts of the load, and tells watchers."""
        self.worker.current = dataclasses.replace(self.worker.current, **load)
        self.changes.notify()


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[Served, WorkerClient]]:
    worker, changes = ScriptedWorker(), Changes()
    servicer = WorkerServicer(worker, changes)
    serving = Served(worker, changes, servicer, RpcServer("127.0.0.1", 0, [servicer.binding()]))
    serving.port = await serving.server.start()
    try:
        async with client_over(f"127.0.0.1:{serving.port}") as client:
            yield serving, client
    finally:
        servicer.close()
        await serving.server.stop(1)


@contextlib.asynccontextmanager
async def client_over(address: str) -> AsyncIterator[WorkerClient]:
    channel = open_channel(address)
    try:
        yield WorkerClient(channel, "worker p")
    finally:
        await channel.close()


async def next_of(watch: AsyncIterator[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await anext(watch)


async def next_report(watch: AsyncIterator[LoadReport | None]) -> LoadReport:
    """The next report, over heartbeats that a slow machine misses."""
    async with asyncio.timeout(WAIT_S):
        while (report := await anext(watch)) is None:
            pass
        return report


async def next_news(watch: AsyncIterator[BlockReport]) -> BlockReport:
    """The next report that tells of a change, over those that say no more than that the worker lives."""
    async with asyncio.timeout(WAIT_S):
        while (report := await anext(watch)).changes == BlockChanges():
            assert not report.is_restart
        return report


async def test_describe_tells_what_the_worker_is_and_how_busy():
    """Everything survives the way over the wire."""
    async with served() as (serving, client):
        assert await client.describe() == (worker_info("p"), serving.worker.current)


async def test_a_watch_begins_with_the_load_of_now_and_goes_on_with_changes():
    """The incarnation comes along, so that a restart is seen."""
    async with served() as (serving, client), contextlib.aclosing(client.watch_load(0.075)) as watch:
        assert await next_report(watch) == LoadReport("i1", serving.worker.current)
        serving.change(free_blocks=5)
        while (report := await next_report(watch)).load.free_blocks == 8:
            pass
        assert report.load.free_blocks == 5


async def test_changes_within_an_interval_become_one_message():
    """At most one message an interval, and it has the last state."""
    async with served() as (serving, client), contextlib.aclosing(client.watch_load(INTERVAL_S * 7.5)) as watch:
        began = time.monotonic()
        await next_report(watch)
        for free in range(7):
            serving.change(free_blocks=free)
        while (report := await next_report(watch)).load.free_blocks == 8:
            pass
        assert report.load.free_blocks == 6
        assert time.monotonic() - began > INTERVAL_S / 2


async def test_an_idle_worker_is_heard_of_all_the_same():
    """Every five intervals, so that silence means trouble."""
    async with served() as (_, client), contextlib.aclosing(client.watch_load(0.075)) as watch:
        assert await next_report(watch) == await next_report(watch)


async def test_a_heartbeat_that_the_watcher_missed_itself_does_not_count():
    """What came while it stood still is read before anything is held against the worker."""
    async with served() as (_, client), contextlib.aclosing(client.watch_load(0.6)) as watch:
        await next_of(watch)
        reading = asyncio.ensure_future(next_of(watch))
        await asyncio.sleep(0)
        time.sleep(1.0)  # noqa: ASYNC251 - the whole loop shall stand still
        assert await reading is not None


async def test_a_worker_that_hears_nothing_is_silent_although_it_reports():
    """The way to it swallows everything, the way back carries its reports; they count again once both ways work."""
    async with (
        served() as (serving, _),
        tcp_proxy(serving.port) as link,
        client_over(link.address) as client,
        contextlib.aclosing(client.watch_load(0.3)) as watch,
    ):
        await next_report(watch)
        link.up.is_open.clear()
        before = link.down.passed_bytes
        for _ in range(3):
            while await next_of(watch) is not None:
                pass
        assert link.down.passed_bytes > before
        link.up.is_open.set()
        await next_report(watch)


async def test_a_watcher_that_leaves_is_forgotten():
    """Closing the generator ends the call on the server."""
    async with served() as (serving, client):
        watch = client.watch_load(0.075)
        await next_of(watch)
        assert serving.servicer.stats()["load_watchers"] == 1
        await watch.aclose()
        async with asyncio.timeout(WAIT_S):
            while serving.servicer.stats()["load_watchers"]:
                await client.describe()


async def test_a_worker_that_stops_ends_its_watches():
    """The watcher's loop ends; nothing is held up."""
    async with served() as (serving, client):
        watch = client.watch_load(0.075)
        await next_of(watch)
        serving.servicer.close()
        async with asyncio.timeout(WAIT_S):
            _ = [report async for report in watch]


async def test_a_worker_that_dies_ends_its_watches_with_an_error():
    """Not in silence."""
    async with served() as (serving, client):
        watch = client.watch_load(60.0)
        await next_of(watch)
        await serving.server.stop(0)
        with pytest.raises(PeerUnreachable, match="worker p"):
            await next_of(watch)


async def test_a_senseless_interval_is_refused():
    """With the field named."""
    async with served() as (_, client):
        with pytest.raises(InvalidRequest, match="interval_ms"):
            await next_of(client.watch_load(100.0))


async def test_drain_ends_before_the_callers_deadline():
    """The worker gets the call's deadline less a margin, so that the answer arrives."""
    async with served() as (serving, client):
        assert await client.drain(timeout_s=WAIT_S) == 3
        assert WAIT_S / 2 < serving.worker.drain_left_s < WAIT_S - 0.1
        assert (await client.describe())[1].draining


async def test_drain_hands_on_when_to_move():
    """At once, later, or as the worker likes; a negative time is refused with the field named."""
    async with served() as (serving, client):
        for asked in (0.0, 1.5, None):
            await client.drain(WAIT_S, asked)
            assert serving.worker.move_after_s == asked
        with pytest.raises(InvalidRequest, match="move_after_ms"):
            await client.drain(WAIT_S, -1.0)


async def test_a_worker_that_is_gone_is_unreachable():
    """For every call."""
    async with served() as (serving, _):
        port = serving.port
    channel = open_channel(f"127.0.0.1:{port}")
    client = WorkerClient(channel, "worker p")
    with pytest.raises(PeerUnreachable):
        await client.describe()
    with pytest.raises(PeerUnreachable):
        await next_of(client.watch_load())
    with pytest.raises(PeerUnreachable):
        await client.drain(1.0)
    await channel.close()


async def test_block_watch_begins_with_everything_and_goes_on_with_changes():
    """A change of the load alone is no news of the cache."""
    async with served() as (serving, client), contextlib.aclosing(client.watch_blocks(10)) as watch:
        assert await next_of(watch) == BlockReport("i1", True, BlockChanges())
        serving.worker.blocks.apply(BlockChanges(added=(1, 2**64 - 1)))
        serving.change(free_blocks=5)
        assert await next_news(watch) == BlockReport("i1", False, BlockChanges(added=(1, 2**64 - 1)))
        serving.worker.blocks.apply(BlockChanges(added=(7,), removed=(1,)))
        serving.change(free_blocks=4)
        assert await next_news(watch) == BlockReport("i1", False, BlockChanges(added=(7,), removed=(1,)))


async def test_large_cache_is_told_in_messages_of_a_bounded_size():
    """Only the first message voids what was told before."""
    async with served() as (serving, client):
        hashes = range(2 * MAX_HASHES + 1)
        serving.worker.blocks.apply(BlockChanges(added=tuple(hashes)))
        async with contextlib.aclosing(client.watch_blocks(10)) as watch:
            reports = [await next_of(watch) for _ in range(3)]
        assert [report.is_restart for report in reports] == [True, False, False]
        assert [len(report.changes.added) for report in reports] == [MAX_HASHES, MAX_HASHES, 1]
        assert {each for report in reports for each in report.changes.added} == set(hashes)


async def test_block_watch_is_heard_of_when_idle_and_forgotten_when_left():
    """Silence means trouble; closing the generator ends the call on the server."""
    async with served() as (serving, client):
        watch = client.watch_blocks(10)
        await next_of(watch)
        assert await next_of(watch) == BlockReport("i1", False, BlockChanges())
        await watch.aclose()
        async with asyncio.timeout(WAIT_S):
            while serving.servicer.stats()["block_watchers"]:
                await client.describe()
