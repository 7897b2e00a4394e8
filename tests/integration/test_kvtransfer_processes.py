"""Source and sink in processes of their own that are killed, stopped and restarted in the middle of a transfer."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.errors import BatonError, ChannelBroken, PeerUnreachable
from services.common.types import Handoff, Tier
from services.kvtransfer.sink import KvSink
from tests.harness.fake_kv import FakeKv
from tests.harness.kv_pair import CONFIG, start_source, until, worker
from tests.harness.kv_process import BLOCKS, NUM_BLOCKS, NUM_TOKENS, TICKET

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Runs `kv_process` and gives the line that it prints when it is ready."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "OMP_NUM_THREADS": "1"}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.harness.kv_process",
        *arguments,
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(60):
            ready = (await child.stdout.readline()).decode().strip()
        assert ready, "the process ended before it was ready"
        yield child, ready
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGCONT)
            child.kill()
        await child.wait()
        child._transport.close()  # type: ignore[attr-defined]


@asynccontextmanager
async def running_sink(kv: FakeKv) -> AsyncIterator[KvSink]:
    sink = KvSink(kv, worker("decode-0", Tier.DECODE, kv), CONFIG)
    try:
        yield sink
    finally:
        await sink.close()


def handoff(address: str, incarnation: str = "i1") -> Handoff:
    return Handoff(ticket_id=TICKET, worker_id="prefill-0", incarnation=incarnation, address=address)


def fetch(sink: KvSink, address: str, incarnation: str = "i1") -> "asyncio.Task[object]":
    deadline = time.monotonic() + 60
    where = handoff(address, incarnation)
    return asyncio.create_task(sink.fetch(where, "request-t", BLOCKS, 0, NUM_TOKENS, deadline))  # type: ignore[arg-type]


async def raises_within(seconds: float, task: "asyncio.Task[object]", *expected: type[BatonError]) -> None:
    started = time.monotonic()
    with pytest.raises(expected):
        await task
    assert time.monotonic() - started < seconds


def when_written(kv: FakeKv, act: Callable[[], None]) -> None:
    """Acts on the channel's thread right after the first chunk was written."""
    write = kv.write

    def write_and_act(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        if len(kv.writes) == 1:
            act()

    kv.write = write_and_act  # type: ignore[method-assign,assignment]


async def test_whole_transfer_between_processes() -> None:
    """Two real processes: everything arrives."""
    kv = FakeKv(num_blocks=NUM_BLOCKS)
    async with process("source", "i1", "0", str(NUM_TOKENS)) as (_, address), running_sink(kv) as sink:
        await fetch(sink, address)
        assert kv.holds(BLOCKS, 0, NUM_TOKENS)


@pytest.mark.slow
async def test_source_killed_mid_transfer_then_restarted() -> None:
    """SIGKILL while messages flow: a typed error within seconds, no more writes; a restart at the same port works."""
    kv = FakeKv(num_blocks=NUM_BLOCKS)
    async with running_sink(kv) as sink:
        async with process("source", "i1", "0", str(NUM_TOKENS)) as (child, address):
            when_written(kv, child.kill)
            await raises_within(20, fetch(sink, address), PeerUnreachable, ChannelBroken)
            written = list(kv.writes)
        port = address.rpartition(":")[2]
        async with process("source", "i2", port, str(NUM_TOKENS)) as (_, address):
            assert kv.writes == written
            await fetch(sink, address, "i2")
            assert kv.holds(BLOCKS, 0, NUM_TOKENS)
            assert sink.is_connected("prefill-0", "i2")


@pytest.mark.slow
async def test_source_killed_while_the_prefill_runs() -> None:
    """SIGKILL between two chunks: the waiting fetch fails within seconds, not at its deadline."""
    kv = FakeKv(num_blocks=NUM_BLOCKS)
    async with process("source", "i1", "0", "40") as (child, address), running_sink(kv) as sink:
        running = fetch(sink, address)
        await until(lambda: len(kv.writes) == 10)
        child.kill()
        await raises_within(20, running, PeerUnreachable, ChannelBroken)


@pytest.mark.slow
async def test_stopped_source_is_noticed_and_late_bytes_are_fenced() -> None:
    """SIGSTOP mid-transfer: the operation's own limit ends the fetch; after SIGCONT nothing is written any more."""
    kv = FakeKv(num_blocks=NUM_BLOCKS)
    async with process("source", "i1", "0", str(NUM_TOKENS)) as (child, address), running_sink(kv) as sink:
        when_written(kv, lambda: child.send_signal(signal.SIGSTOP))
        running = fetch(sink, address)
        await raises_within(40, running, PeerUnreachable, ChannelBroken)
        written = len(kv.writes)
        child.send_signal(signal.SIGCONT)
        await until(lambda: sink.stats()["peers"] == 0)
        assert len(kv.writes) == written


@pytest.mark.slow
async def test_killed_sink_frees_the_source() -> None:
    """SIGKILL of the sink mid-transfer: its channel goes at once; the ticket stays for another sink and then leaves."""
    side = await start_source(FakeKv(num_blocks=NUM_BLOCKS), CONFIG)
    side.open(TICKET, NUM_TOKENS, BLOCKS)
    side.compute(TICKET, 0, 100, BLOCKS)
    try:
        async with process("sink", side.info.address) as (child, _):
            assert side.source.num_channels == 1
            child.kill()
            await until(lambda: side.source.num_channels == 0)
        assert side.source.stats()["fetches"] == 0
        assert side.released == []
        side.compute(TICKET, 100, NUM_TOKENS, BLOCKS)
        side.finish(TICKET)
        kv = FakeKv(num_blocks=NUM_BLOCKS)
        async with running_sink(kv) as sink:
            await fetch(sink, side.info.address)
            assert kv.holds(BLOCKS, 0, NUM_TOKENS)
            await until(lambda: side.released == [TICKET])
    finally:
        await side.stop()
