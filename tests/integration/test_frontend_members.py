"""Who a real frontend routes to while workers and the directory come and go."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from baton.v1 import generation_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.types import KvLayout, Tier
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.registration import Registration
from services.kvtransfer.directory.server import DirectoryProcess
from tests.harness.scripted_frontend import Cluster, cluster, frontend, ids_of, tokens_of
from tests.harness.scripted_workers import Script, ScriptedWorker, eventually, within

ANSWER = ids_of("the capital of France is Paris.")
BOTH = (Tier.PREFILL, Tier.DECODE)


@contextlib.asynccontextmanager
async def directory(port: int = 0) -> AsyncIterator[DirectoryProcess]:
    """A directory of its own."""
    process = DirectoryProcess(DirectorySettings(port=port, metrics_port=0, lease_s=2.0))
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


@contextlib.asynccontextmanager
async def registered(worker: ScriptedWorker, address: str) -> AsyncIterator[None]:
    """Keeps a worker registered."""
    registration = Registration(address, worker.info)
    registration.start()
    try:
        yield
    finally:
        await registration.close()


def ids(running: Cluster) -> set[str]:
    """Workers that can be routed to."""
    return {candidate.worker.worker_id for candidate in running.process.members.snapshot().candidates}


async def _serving(running: Cluster, want: bool) -> None:
    """Waits until the standard health service says so."""
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="baton.v1.GenerationService"))
    status = health_pb2.HealthCheckResponse.SERVING if want else health_pb2.HealthCheckResponse.NOT_SERVING
    while (await within(watch.read())).status != status:
        pass
    watch.cancel()


async def test_workers_of_the_directory_are_used_and_forgotten() -> None:
    """Workers that register are routed to; one that leaves is not, and the frontend keeps nothing of it."""
    script = Script(ANSWER)
    workers = [ScriptedWorker(tier, script) for tier in BOTH]
    async with (
        directory() as place,
        frontend(workers, workers="", directory=f"127.0.0.1:{place.port}") as running,
    ):
        async with registered(workers[1], f"127.0.0.1:{place.port}"):
            async with registered(workers[0], f"127.0.0.1:{place.port}"):
                await running.reachable(2)
                completion = (await running.outputs())[-1].completion
                assert completion is not None
                assert not completion.colocated
            await running.reachable(1)
            completion = (await running.outputs())[-1].completion
            assert completion is not None
            assert completion.colocated
        await running.reachable(0)
        stats = running.process.stats
        await eventually(lambda: not any(stats()[f"members{kind}"] for kind in ("", "_retired", "_closing")))


async def test_directory_may_be_away() -> None:
    """While the directory is down, and after it came back knowing nobody, requests go on as before."""
    script = Script(ANSWER)
    workers = [ScriptedWorker(tier, script) for tier in BOTH]
    async with contextlib.AsyncExitStack() as stack, directory() as place:
        port = place.port
        running = await stack.enter_async_context(frontend(workers, workers="", directory=f"127.0.0.1:{port}"))
        async with contextlib.AsyncExitStack() as registrations:
            for worker in workers:
                await registrations.enter_async_context(registered(worker, f"127.0.0.1:{port}"))
            await running.reachable(2)
            await place.stop()
            assert tokens_of(await running.outputs()) == ANSWER
            async with directory(port):
                assert tokens_of(await running.outputs()) == ANSWER
                assert ids(running) == {"prefill-0", "decode-0"}


async def test_restarted_worker_is_a_new_one() -> None:
    """After a restart at the same address requests name the new incarnation, which has none of the old KV."""
    async with cluster(Script(ANSWER)) as running:
        await running.outputs()
        await running.prefill.restart()
        new = running.prefill.incarnation
        snapshot = running.process.members.snapshot
        await eventually(lambda: new in {c.worker.incarnation for c in snapshot().candidates})
        await running.outputs()
        assert running.decode.requests[-1].handoff.incarnation == new
        assert running.prefill.requests


async def test_dead_worker_is_passed_over() -> None:
    """Once a worker cannot be reached, requests go to the others; once it is back, to it again."""
    async with cluster(Script(ANSWER), (Tier.DECODE, Tier.DECODE)) as running:
        await running.workers[0].stop()
        await running.reachable(1)
        for _ in range(4):
            await running.outputs()
        assert len(running.workers[1].requests) == 4
        await running.workers[0].restart()
        await running.reachable(2)
        for _ in range(4):
            await running.outputs()
        assert running.workers[0].requests


async def test_requests_spread_over_equal_workers() -> None:
    """Requests in work at once are shared evenly, before any load report says so."""
    script = Script(ANSWER)
    script.first_token.clear()
    script.handoff.clear()
    async with cluster(script, (Tier.PREFILL, Tier.PREFILL, Tier.DECODE, Tier.DECODE)) as running:
        calls = [running.raw(pb.GenerateRequest(text="hello")) for _ in range(8)]
        await eventually(lambda: all(len(worker.requests) == 4 for worker in running.workers))
        for call in calls:
            call.cancel()
        await running.idle()


async def test_incompatible_pair_is_not_routed() -> None:
    """A prefill worker whose KV does not fit the decode worker is left out, and the fallback is named."""
    script = Script(ANSWER)
    workers = [ScriptedWorker(tier, script) for tier in BOTH]
    layout = workers[0].layout
    workers[0].layout = KvLayout(
        model_fingerprint="other", dtype="float32", num_layers=1, num_kv_heads=1, head_dim=2, block_size=4
    )
    assert workers[0].layout != layout
    async with frontend(workers) as running:
        await running.reachable(2)
        completion = (await running.outputs())[-1].completion
        assert completion is not None
        assert completion.colocated
        assert not workers[0].requests


async def test_worker_of_another_model_is_ignored() -> None:
    """A worker that serves another model is not used for this one."""
    script = Script(ANSWER)
    workers = [ScriptedWorker(Tier.DECODE, script), ScriptedWorker(Tier.DECODE, script, worker_id="x", model="other")]
    async with frontend(workers) as running:
        await running.reachable(1)
        assert ids(running) == {"decode-0"}
        models = await running.client.list_models()
        assert [(model.name, model.max_model_len, model.prefill_workers, model.decode_workers) for model in models] == [
            ("text", 64, 0, 1)
        ]


async def test_readiness_follows_the_workers() -> None:
    """NOT_SERVING without a usable route, SERVING with one, and back again."""
    async with frontend([ScriptedWorker(Tier.DECODE, Script(ANSWER))]) as running:
        await _serving(running, True)
        await running.decode.stop()
        await _serving(running, False)
        await running.decode.restart()
        await _serving(running, True)


async def test_worker_that_left_finishes_what_it_has() -> None:
    """A stream on a worker that leaves the directory goes on to its end; then its channel is closed."""
    script = Script(ANSWER)
    script.steps.clear()
    worker = ScriptedWorker(Tier.DECODE, script)
    async with (
        directory() as place,
        frontend([worker], workers="", directory=f"127.0.0.1:{place.port}") as running,
    ):
        async with registered(worker, f"127.0.0.1:{place.port}"):
            await running.reachable(1)
            outputs = running.generate()
            first = await within(anext(outputs))
        await running.reachable(0)
        assert running.process.stats()["members_retired"] == 1
        script.steps.set()
        assert tokens_of([first, *[output async for output in outputs]]) == ANSWER
        stats = running.process.stats
        await eventually(lambda: not stats()["members_retired"] and not stats()["members_closing"])
