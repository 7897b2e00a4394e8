"""Members that only the directory lost, entries that are stale, and nobody left, before a real frontend."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import grpc
from baton.v1 import generation_pb2 as pb

from services.common.types import Tier
from services.kvtransfer.directory.client import DirectoryClient
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.registration import Registration
from services.kvtransfer.directory.server import DirectoryProcess
from tests.harness.scripted_frontend import cluster, frontend, ids_of, tokens_of
from tests.harness.scripted_workers import TIMEOUT_S, Script, ScriptedWorker, eventually, within
from tests.harness.tcp_proxy import tcp_proxy

ANSWER = ids_of("the capital of France is Paris.")
# About a second is meant; the rest is for a loaded machine, and still less than the deadline of a call.
SOON_S = 0.7 * TIMEOUT_S


@contextlib.asynccontextmanager
async def directory(lease_s: float) -> AsyncIterator[str]:
    """Its address."""
    process = DirectoryProcess(DirectorySettings(port=0, metrics_port=0, lease_s=lease_s))
    await process.start()
    try:
        yield f"127.0.0.1:{process.port}"
    finally:
        await process.stop()


async def test_a_worker_that_only_the_directory_lost_is_used_on() -> None:
    """Its lease ends while the frontend hears it; one that says that it leaves goes at once, although it is heard."""
    workers = [ScriptedWorker(Tier.DECODE, Script(ANSWER), worker_id=f"decode-{place}") for place in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        place = await stack.enter_async_context(directory(2.0))
        running = await stack.enter_async_context(frontend(workers, workers="", directory=place))
        link = await stack.enter_async_context(tcp_proxy(int(place.rpartition(":")[2])))
        lost, leaving = Registration(link.address, workers[0].info), Registration(place, workers[1].info)
        for registration in (lost, leaving):
            registration.start()
            stack.push_async_callback(registration.close)
        await running.reachable(2)
        link.refuse()
        await dropped(place, "decode-0")
        await leaving.close()
        await eventually(lambda: running.process.stats()["members"] == 1)  # so the frontend has heard of both
        assert tokens_of(await running.outputs()) == ANSWER
        await link.heal()
        assert await lost.wait_registered(TIMEOUT_S)
        await lost.close()
        await eventually(lambda: running.process.stats()["members"] == 0)


async def dropped(place: str, worker_id: str) -> None:
    """Waits until the directory lists a worker no more."""
    client = DirectoryClient(place)
    async with asyncio.timeout(TIMEOUT_S), contextlib.aclosing(client.watch()) as memberships:
        async for membership in memberships:
            if worker_id not in {worker.worker_id for worker in membership.workers}:
                break
    await client.close()


async def test_a_stale_entry_harms_nobody() -> None:
    """A worker that died without a word stays in the directory until its lease ends, and gets no requests meanwhile."""
    workers = [ScriptedWorker(Tier.DECODE, Script(ANSWER), worker_id=f"decode-{place}") for place in range(2)]
    async with directory(60.0) as place, frontend(workers, workers="", directory=place) as running:
        client = DirectoryClient(place)
        for worker in workers:
            await client.register(worker.info())
        await running.reachable(2)
        await workers[0].stop()
        answers = await asyncio.gather(*(running.outputs() for _ in range(8)))
        assert all(tokens_of(answer) == ANSWER for answer in answers)
        await running.reachable(1)
        assert running.process.stats()["members"] == 2
        await client.close()


async def test_nobody_left_is_said_at_once_and_with_a_hint() -> None:
    """From the moment of the loss on: UNAVAILABLE in about a second, with a time to come back; then it is served."""
    async with cluster(Script(ANSWER)) as running:
        for worker in running.workers:
            await worker.stop()
        for _ in range(3):
            began = time.monotonic()
            error = await running.fails(running.raw(pb.GenerateRequest(text="hello")))
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            assert time.monotonic() - began < SOON_S
        await running.reachable(0)
        began = time.monotonic()
        error = await running.fails(running.raw(pb.GenerateRequest(text="hello")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        assert time.monotonic() - began < SOON_S
        assert "google.rpc.RetryInfo" in str(dict(error.trailing_metadata() or ()))
        await running.decode.restart()
        await running.reachable(1)
        assert tokens_of(await within(running.outputs())) == ANSWER
