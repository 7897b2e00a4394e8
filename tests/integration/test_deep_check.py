"""The deep check, asked over gRPC of real workers."""

import time
from functools import partial
from typing import Any

import pytest

from services.cli.deep_health import show
from services.common.check_item import CheckItem
from services.common.errors import EngineStalled, NotFound
from services.common.rpc.channel import open_channel
from services.common.rpc.server import RpcServer
from services.common.types import Load, Tier
from services.common.worker_client import WorkerClient
from services.common.worker_service import WorkerServicer
from services.worker.deep_check import block_fault, deep_check
from tests.harness.fake_engine import FakeEngine
from tests.harness.tiers import TierServer, both_legs, running, work


def fine() -> None:
    """The engine is not known to hang."""


async def ask(server: TierServer, timeout_s: float = 30.0, check_liveness: Any = fine) -> dict[str, CheckItem]:
    """What the worker answers, by name of the item."""
    servicer = WorkerServicer(server.tier, server.tier.changes, None, partial(deep_check, server.tier, check_liveness))
    rpc = RpcServer("127.0.0.1", 0, [servicer.binding()])
    channel = open_channel(f"127.0.0.1:{await rpc.start()}")
    try:
        return {item.name: item for item in await WorkerClient(channel, "worker").check(timeout_s)}
    finally:
        await channel.close()
        await rpc.stop(0)


async def test_everything_works() -> None:
    """Engine, each channel, blocks and handoffs, with how long the trials took; nothing is left behind."""
    prefill, decode = TierServer(Tier.PREFILL), TierServer(Tier.DECODE)
    async with running(prefill, decode):
        await decode.tier._sink.connect(prefill.info)
        await both_legs(prefill, decode, work([1, 2, 3]), "t-1")
        items = await ask(decode)
        assert list(items) == ["engine", f"channel {prefill.info.worker_id}", "blocks", "handoffs"]
        assert not any(item.error for item in items.values())
        assert all(items[name].latency_ns > 0 for name in ("engine", f"channel {prefill.info.worker_id}"))
        assert show(list(items.values()))
        assert not any(item.error for item in (await ask(prefill)).values())
        for server in (prefill, decode):
            await server.settled(lambda server=server: server.blocks_held == 0)


async def test_a_dead_peer_fails_its_own_item_alone() -> None:
    """By the deadline, with the error's name; the rest is fine."""
    prefill, decode = TierServer(Tier.PREFILL), TierServer(Tier.DECODE)
    async with running(decode):
        await prefill.start()
        await decode.tier._sink.connect(prefill.info)
        await prefill.stop()
        items = await ask(decode, 5.0)
        assert items[f"channel {prefill.info.worker_id}"].error
        assert not items["engine"].error
        assert not show(list(items.values()))


async def test_a_hung_engine_fails_in_time() -> None:
    """The answer is there by the deadline, and at once where the watchdog knows already."""
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)

    def stalled() -> None:
        raise EngineStalled("a step takes too long")

    async with running(server):
        engine.gate.clear()
        began = time.monotonic()
        assert (await ask(server, 2.0))["engine"].error == "DeadlineExceeded"
        assert time.monotonic() - began < 20
        engine.gate.set()
        assert (await ask(server, 30.0, stalled))["engine"].error == "EngineStalled"


@pytest.mark.parametrize(
    ("load", "fault"),
    [
        (Load(free_blocks=8, total_blocks=8, counters={"blocks_held": 0}), ""),
        (Load(free_blocks=6, total_blocks=8, running_requests=1, counters={"blocks_held": 2}), ""),
        (Load(free_blocks=6, total_blocks=8, counters={"blocks_held": 2}), "no request is there"),
        (Load(free_blocks=5, total_blocks=8, running_requests=1, counters={"blocks_held": 2}), "of 8"),
    ],
)
def test_block_accounts_that_do_not_agree_are_told(load: Load, fault: str) -> None:
    """Blocks that nobody holds for a request, or that are in no account at all."""
    assert fault in block_fault(load)
    assert bool(fault) == bool(block_fault(load))


async def test_a_worker_without_a_deep_check_says_so() -> None:
    """Typed."""
    server = TierServer(Tier.COLOCATED)
    async with running(server):
        with pytest.raises(NotFound, match="no deep check"):
            await WorkerClient(server.channel, "worker").check(5.0)
