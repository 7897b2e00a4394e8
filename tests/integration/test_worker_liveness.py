"""Liveness and the tiny request, on workers whose engine a test can hold."""

import asyncio
import contextlib
import time

import pytest

from services.common.errors import EngineStalled
from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.worker.liveness import Liveness
from services.worker.standing import Standing
from tests.harness.fake_engine import FakeEngine
from tests.harness.tiers import TierServer, collect, running, until, work


@pytest.mark.parametrize("tier", [Tier.PREFILL, Tier.DECODE, Tier.COLOCATED])
async def test_a_tiny_request_runs_and_leaves_nothing(tier: Tier) -> None:
    """It really steps the engine, and all its blocks are free again."""
    server = TierServer(tier)
    async with running(server):
        await server.tier.try_out(time.monotonic() + 10)
        assert server.engine.steps >= 1
        assert server.tier.load().counters["prefilled_tokens"] == 0
        await server.settled(lambda: server.blocks_held == 0 and server.tier.load().counters["live_requests"] == 0)


async def test_a_hung_step_is_noticed_and_so_is_its_end() -> None:
    """Not live while one step goes on for too long; live again when it ends; nothing is said while it rests."""
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server):
        told: list[bool] = []
        liveness = Liveness(server.tier, 0.5, told.append)
        liveness.start()
        engine.gate.clear()
        async with contextlib.aclosing(server.decode.decode(work([1, 2], SamplingParams(temperature=0.0)))) as events:
            beginning = asyncio.create_task(anext(events))
            await until(lambda: told == [False])
            with pytest.raises(EngineStalled, match="restart it"):
                liveness.check()
            engine.gate.set()
            await until(lambda: told == [False, True])
            liveness.check()
            await beginning
        await server.settled(lambda: server.blocks_held == 0)
        await asyncio.sleep(0.75)  # more than the limit: an idle thread must not look stalled
        assert told == [False, True]
        await liveness.close()


async def test_a_worker_that_stalls_tells_its_peers_that_it_takes_nothing_new() -> None:
    """Through its load, which is what frontends route by."""
    server = TierServer(Tier.COLOCATED)
    async with running(server):
        standing = Standing(server.tier, lambda: None, 1.0)
        assert not standing.load().draining
        standing.is_live = False
        assert standing.load().draining
        assert await collect(server.decode.decode(work([1, 2])))
