"""Members that sleep beyond their lease, entries that are stale, and nobody left, before a real frontend."""

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


async def test_a_worker_that_slept_beyond_its_lease_comes_back_as_itself() -> None:
    """The directory drops it, the frontend lets go of it, and under the same incarnation both take it back."""
    worker = ScriptedWorker(Tier.DECODE, Script(ANSWER))
    async with directory(2.0) as place, frontend([worker], workers="", directory=place) as running:
        client = DirectoryClient(place)
        await client.register(worker.info())  # once, and then nothing, as a stopped process would
        await running.reachable(1)
        await running.reachable(0)
        await eventually(lambda: running.process.stats()["members"] == 0)
        registration = Registration(place, worker.info)
        registration.start()
        await running.reachable(1)
        assert tokens_of(await running.outputs()) == ANSWER
        await registration.close()
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
