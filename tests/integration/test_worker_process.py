"""Whole worker processes over a real model, in the test's own event loop: when they are ready, live, and leave."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.cli.deep_health import deep_check
from services.cli.free_ports import FreePorts
from services.cli.health import check_health
from services.common.rpc.channel import open_channel
from services.common.rpc.health import LIVENESS
from services.common.settings import WorkerSettings
from services.common.types import Load, WorkerInfo
from services.common.worker_client import WorkerClient
from services.decode import server as decode
from services.decode.config import DecodeSettings
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.server import DirectoryProcess
from services.prefill import server as prefill
from services.prefill.config import PrefillSettings
from services.worker.process import WorkerProcess
from tests.harness.checkpoints import tiny_checkpoint


@contextlib.asynccontextmanager
async def directory() -> AsyncIterator[str]:
    """Its address."""
    process = DirectoryProcess(DirectorySettings(port=0, metrics_port=0))
    await process.start()
    try:
        yield f"127.0.0.1:{process.port}"
    finally:
        await process.stop()


@contextlib.asynccontextmanager
async def started(process: WorkerProcess, settings: WorkerSettings) -> AsyncIterator[str]:
    """Starts it and gives its address; stops it, whatever happens in between."""
    try:
        await process.start()
        yield f"127.0.0.1:{settings.port}"
    finally:
        await process.stop()


def options(checkpoint: Path, **more: Any) -> dict[str, Any]:
    """Settings of a small worker."""
    return {
        "model": str(checkpoint),
        "dtype": "float32",
        "port": FreePorts("127.0.0.1").take(),
        "metrics_port": 0,
        "cpu_kv_bytes": "16MiB",
        "threads": 1,
        **more,
    }


async def describe(address: str) -> tuple[WorkerInfo, Load]:
    """What the worker says of itself."""
    channel = open_channel(address)
    try:
        return await WorkerClient(channel, address).describe()
    finally:
        await channel.close()


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """A tiny model."""
    return tiny_checkpoint("llama")


async def test_a_decode_worker_is_ready_once_its_channels_are_proven(checkpoint: Path) -> None:
    """At that moment the pair is proven, a deep check finds everything well, and no token was counted."""
    async with directory() as place, contextlib.AsyncExitStack() as stack:
        first = PrefillSettings(**options(checkpoint, directory=place))
        source = await stack.enter_async_context(started(prefill.build(first), first))
        second = DecodeSettings(**options(checkpoint, directory=place))
        sink = await stack.enter_async_context(started(decode.build(second), second))
        assert await check_health(sink, 20.0)
        info, load = await describe(source)
        assert (await describe(sink))[1].proven == (info.incarnation,)
        assert load.counters["prefilled_tokens"] == 0
        for address in (source, sink):
            items = await deep_check(address, 30.0)
            assert items
            assert not any(item.error for item in items), items
            assert (await describe(address))[1].counters["prefilled_tokens"] == 0


async def test_a_decode_worker_alone_is_ready(checkpoint: Path) -> None:
    """With neither a directory nor a prefill worker; once it drains it is not ready any more, but live."""
    settings = DecodeSettings(**options(checkpoint))
    process = decode.build(settings)
    async with started(process, settings) as address:
        assert await check_health(address, 20.0, "baton.v1.DecodeService")
        await process.drain(time.monotonic() + 20)
        assert not await check_health(address, 20.0)
        assert await check_health(address, 20.0, LIVENESS)


async def test_a_directory_that_is_away_does_not_keep_a_worker_from_being_ready(checkpoint: Path) -> None:
    """It serves alone until somebody knows it."""
    settings = DecodeSettings(**options(checkpoint, directory="127.0.0.1:9"))
    async with started(decode.build(settings), settings) as address:
        assert await check_health(address, 20.0)
        assert (await describe(address))[1].proven == ()
