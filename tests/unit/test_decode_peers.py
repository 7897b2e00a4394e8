"""Whom a decode worker keeps channels to, as prefill workers come and go."""

import asyncio
from collections.abc import AsyncGenerator

from services.common.types import Membership, WorkerInfo
from services.decode.peers import Peers
from tests.harness.workers import worker_info

WAIT_S = 20.0


class FakeChannels:
    """Opens at once, but to workers that are `silent`; tells what was done in order."""

    def __init__(self, *silent: str) -> None:
        self.silent = silent
        self.told: asyncio.Queue[str] = asyncio.Queue()

    async def connect(self, worker: WorkerInfo) -> None:
        """As the sink."""
        self.told.put_nowait(f"connect {worker.worker_id}/{worker.incarnation}")
        if worker.worker_id in self.silent:
            await asyncio.Event().wait()

    async def disconnect(self, worker_id: str) -> None:
        """As the sink."""
        self.told.put_nowait(f"disconnect {worker_id}")

    async def hears(self, count: int) -> list[str]:
        """The next so many."""
        async with asyncio.timeout(WAIT_S):
            return [await self.told.get() for _ in range(count)]


class Following:
    """Peers over a membership that the test sets."""

    def __init__(self, channels: FakeChannels) -> None:
        self._memberships: asyncio.Queue[Membership] = asyncio.Queue()
        self.peers = Peers(self._watch, "decode-0", channels)

    async def __aenter__(self) -> "Following":
        self.peers.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.peers.close()

    def know(self, *workers: WorkerInfo) -> None:
        """The membership is this now."""
        self._memberships.put_nowait(Membership(workers=workers))

    async def _watch(self) -> AsyncGenerator[Membership]:
        while True:
            yield await self._memberships.get()


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
        assert following.peers.stats() == {"peers": 2, "peers_connecting": 1}
