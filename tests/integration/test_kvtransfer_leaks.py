"""Channels that come and go leave nothing in the process: no thread, no descriptor, no buffer, no task."""

import asyncio
import contextlib
import gc
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import ChannelBroken
from services.kvtransfer.transport.gloo import open_gloo
from tests.harness.faulty_transport import Fault, FaultPlan, faulty
from tests.harness.kv_pair import CONFIG, NUM_TOKENS, SINK_BLOCKS, Pair, kv_pair, until

GRPC_THREADS = ("event_engine", "grpc_global_tim", "lifeguard")


def count_threads() -> int:
    """Threads but those of pools (gRPC's, the event loop's), which grow with load and stay."""
    of_grpc = sum(_name(task).startswith(GRPC_THREADS) for task in os.listdir("/proc/self/task"))
    of_executor = sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())
    return len(os.listdir("/proc/self/task")) - of_grpc - of_executor


def _name(task: str) -> str:
    with contextlib.suppress(OSError):  # it has just ended
        return Path(f"/proc/self/task/{task}/comm").read_text()
    return ""


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def count_tasks() -> int:
    return len(asyncio.all_tasks())


async def settled(threads: int, descriptors: int, tasks: int) -> None:
    """Waits until everything is back where it was; fails with the counts where it is not."""
    gc.collect()
    try:
        await until(lambda: count_threads() <= threads and count_descriptors() <= descriptors)
        await until(lambda: count_tasks() <= tasks)
    except TimeoutError:
        now = (count_threads(), count_descriptors(), count_tasks())
        pytest.fail(f"threads, descriptors, tasks were {(threads, descriptors, tasks)}, are {now}")


async def one_round(pair: Pair, name: str) -> None:
    await pair.sink.connect(pair.left.info)
    pair.left.prefill(name)
    await pair.fetch(name)
    await until(lambda: pair.left.source.num_tickets == 0)
    await pair.sink.disconnect("prefill-0")
    await until(lambda: pair.left.source.num_channels == 0)
    await until(lambda: pair.left.source.stats()["channels_ending"] == 0)


async def test_fifty_channels_leave_nothing() -> None:
    """Open, use and close 50 channels: counts are those after the first."""
    async with kv_pair() as pair:
        for number in range(2):
            await one_round(pair, f"warm-{number}")
        before = (count_threads(), count_descriptors(), count_tasks())
        for number in range(50):
            await one_round(pair, f"t{number}")
        await settled(*before)
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)
        assert len(pair.left.released) == 52
        for stats in (pair.left.source.stats(), pair.sink.stats()):
            assert stats.get("staging_bytes", 0) == 0
            assert stats["fetches"] == 0


async def test_broken_channels_leave_nothing() -> None:
    """Channels that break in every way leave as little as those that are closed."""
    plan = FaultPlan()
    config = replace(CONFIG, operation_floor_s=0.5)
    async with kv_pair(config, source_transports={"gloo": faulty(open_gloo, plan)}) as pair:
        for number in range(2):
            await one_round(pair, f"warm-{number}")
        before = (count_threads(), count_descriptors(), count_tasks())
        for number, fault in enumerate([Fault.CORRUPT, Fault.BREAK, Fault.DROP, Fault.TRUNCATE] * 4):
            plan.faults[1 + number % 3] = fault
            await one_round(pair, f"t{number}")
        await settled(*before)


async def test_failed_connects_leave_nothing() -> None:
    """Channels whose probe never arrives are given up without a trace."""
    plan = FaultPlan()
    config = replace(CONFIG, operation_floor_s=2.0)
    async with kv_pair(config, source_transports={"gloo": faulty(open_gloo, plan)}) as pair:
        await one_round(pair, "warm")
        before = (count_threads(), count_descriptors(), count_tasks())
        for _ in range(8):
            plan.faults[0] = Fault.ZERO
            with pytest.raises(ChannelBroken):
                await pair.sink.connect(pair.left.info)
            await pair.sink.disconnect("prefill-0")
        await until(lambda: pair.left.source.num_channels == 0)
        await settled(*before)
