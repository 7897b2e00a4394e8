"""Whom a decode worker keeps channels to, as prefill workers come and go."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from services.common.errors import PeerUnreachable
from services.common.types import Membership, WorkerInfo
from services.decode.peers import Peers
from tests.harness.workers import worker_info

WAIT_S = 20.0


class FakeChannels:
    """Opens and closes at once, but for workers that are `silent`; tells what was done in order."""

    def __init__(self, *silent: str) -> None:
        self.silent = silent
        self.dropped = asyncio.Event()
        self.told: asyncio.Queue[str] = asyncio.Queue()

    async def connect(self, worker: WorkerInfo) -> None:
        """As the sink."""
        self.told.put_nowait(f"connect {worker.worker_id}/{worker.incarnation}")
        if worker.worker_id in self.silent:
            await asyncio.Event().wait()

    async def disconnect(self, worker_id: str) -> None:
        """As the sink."""
        self.told.put_nowait(f"disconnect {worker_id}")
        if worker_id in self.silent:
            await self.dropped.wait()

    async def hears(self, count: int) -> list[str]:
        """The next so many."""
        async with asyncio.timeout(WAIT_S):
            return [await self.told.get() for _ in range(count)]


class Following:
    """Peers over a membership that the test sets."""

    def __init__(self, channels: FakeChannels) -> None:
        self._memberships: asyncio.Queue[Membership | Exception] = asyncio.Queue()
        self._channels = channels
        self.peers = Peers(self._watch, "decode-0", channels)

    async def __aenter__(self) -> "Following":
        self.peers.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._channels.dropped.set()
        await self.peers.close()

    def know(self, *workers: WorkerInfo) -> None:
        """The membership is this now."""
        self._memberships.put_nowait(Membership(workers=workers))

    def fail(self, error: Exception) -> None:
        """The watch raises."""
        self._memberships.put_nowait(error)

    async def _watch(self) -> AsyncGenerator[Membership]:
        while True:
            membership = await self._memberships.get()
            if isinstance(membership, Exception):
                raise membership
            yield membership


async def test_a_silent_peer_holds_up_nobody() -> None:
    """Neither those known with it nor who comes or leaves while it is waited for."""
    channels = FakeChannels("silent")
    async with Following(channels) as following:
        following.know(worker_info("silent"), worker_info("one"))
        assert sorted(await channels.hears(2)) == ["connect one/i1", "connect silent/i1"]
        following.know(worker_info("silent"), worker_info("two"))
        assert await channels.hears(2) == ["disconnect one", "connect two/i1"]
        following.know(worker_info("two"))
        assert await channels.hears(1) == ["disconnect silent"]


async def test_a_peer_that_is_slow_to_leave_holds_up_nobody() -> None:
    """Whoever comes meanwhile is connected, itself too; closing waits for it."""
    channels = FakeChannels("slow")
    async with Following(channels) as following:
        following.know(worker_info("slow"))
        assert await channels.hears(1) == ["connect slow/i1"]
        following.know()
        following.know(worker_info("one"), worker_info("slow", incarnation="i2"))
        assert (await channels.hears(3))[0] == "disconnect slow"
        assert following.peers.stats()["peers_leaving"] == 1
        closing = asyncio.ensure_future(following.peers.close())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done()
        channels.dropped.set()
        await closing
        assert following.peers.stats()["peers_leaving"] == 0


@pytest.mark.parametrize("error", [PeerUnreachable("gone"), ValueError("a bug")], ids=["typed", "any"])
async def test_a_watch_that_fails_is_begun_again(error: Exception) -> None:
    """Or no peer would ever come or go again, and nobody would know."""
    channels = FakeChannels()
    async with Following(channels) as following:
        following.know(worker_info("one"))
        following.fail(error)
        following.know(worker_info("two"))
        assert await channels.hears(3) == ["connect one/i1", "disconnect one", "connect two/i1"]


async def test_a_restarted_peer_is_connected_again() -> None:
    """Its channel was to another process."""
    channels = FakeChannels()
    async with Following(channels) as following:
        following.know(worker_info("one"))
        assert await channels.hears(1) == ["connect one/i1"]
        following.know(worker_info("one", incarnation="i2"))
        assert await channels.hears(1) == ["connect one/i2"]


async def test_settling_waits_for_those_known_at_first() -> None:
    """Until each was tried, but not longer than it may."""
    channels = FakeChannels("silent")
    async with Following(channels) as following:
        following.know(worker_info("one"))
        await following.peers.settle(WAIT_S)
        assert await channels.hears(1) == ["connect one/i1"]
        following.know(worker_info("one"), worker_info("silent"))
        await channels.hears(1)
        await following.peers.settle(0.01)
        assert following.peers.stats() == {"peers": 2, "peers_connecting": 1, "peers_leaving": 0}
