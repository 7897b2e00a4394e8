"""A decode worker tells which prefill processes it has a proven channel to."""

import contextlib
from collections.abc import AsyncIterator

from services.common.types import Tier
from services.common.worker_client import WorkerClient
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.registration import Registration
from services.kvtransfer.directory.server import DirectoryProcess
from tests.harness.tiers import TierServer, running, until


@contextlib.asynccontextmanager
async def directory() -> AsyncIterator[str]:
    """The address of a directory."""
    process = DirectoryProcess(DirectorySettings(port=0, metrics_port=0, lease_s=2.0))
    await process.start()
    try:
        yield f"127.0.0.1:{process.port}"
    finally:
        await process.stop()


@contextlib.asynccontextmanager
async def registered(server: TierServer, address: str) -> AsyncIterator[None]:
    """Keeps a worker registered."""
    registration = Registration(address, lambda: server.info)
    registration.start()
    try:
        yield
    finally:
        await registration.close()


async def test_a_channel_is_reported_while_it_is_proven() -> None:
    """The incarnation appears in the load after the probe, at once, and is gone with the channel."""
    async with directory() as address:
        prefill, decode = TierServer(Tier.PREFILL), TierServer(Tier.DECODE, directory=address)
        async with running(prefill, decode):
            assert decode.tier.load().proven == ()
            watch = WorkerClient(decode.channel, "decode").watch_load()
            async with contextlib.aclosing(watch), registered(prefill, address):
                async for report in watch:
                    if report is not None and report.load.proven == (prefill.info.incarnation,):
                        break
            await until(lambda: decode.tier.load().proven == ())


async def test_a_worker_without_peers_tells_nothing() -> None:
    """Its channels open with the first handoff, so that no pair is ruled out before."""
    decode = TierServer(Tier.DECODE)
    async with running(decode):
        assert decode.tier.load().proven is None
