"""A running worker takes another tier: same process, same loaded engine, no failed request."""

import asyncio
from typing import Any

import pytest

from services.common.errors import InvalidRequest, RoleRefused
from services.common.types import Tier
from services.frontend.config import FrontendSettings
from services.frontend.server import FrontendProcess
from services.worker.tier import Parts
from tests.harness.fake_engine import FakeEngine
from tests.harness.text_checkpoint import text_checkpoint
from tests.harness.tiers import until
from tests.harness.worker_cluster import WorkerCluster, worker_cluster

PROMPT = list(range(10, 40))
P, D, C = Tier.PREFILL, Tier.DECODE, Tier.COLOCATED


async def steady_client(cluster: WorkerCluster, until_set: asyncio.Event) -> int:
    """Asks one prompt after the other until the event; each answer is right, or the test fails."""
    count = 0
    while not until_set.is_set():
        await cluster.check([count % 90, *PROMPT], 20)
        count += 1
    return count


async def held_requests(cluster: WorkerCluster, engine: FakeEngine) -> list[asyncio.Task[None]]:
    """Requests of which this engine, which stands still from now on, has begun one."""
    while engine.entered.acquire(blocking=False):
        pass  # steps of the time when the worker tried itself out
    engine.gate.clear()
    asking = [asyncio.create_task(cluster.check([n, *PROMPT], 4)) for n in range(3)]
    await until(lambda: engine.entered.acquire(blocking=False))
    return asking


async def test_prefill_decode_prefill_under_load():
    """Under load a worker goes prefill → decode → prefill: no request fails, all tokens are right."""
    async with worker_cluster(2, 2) as cluster:
        stop = asyncio.Event()
        clients = [asyncio.create_task(steady_client(cluster, stop)) for _ in range(4)]
        before, _ = await cluster.describe("prefill-0")
        engine = cluster.engines["prefill-0"]
        await until(lambda: engine.steps > 0)
        became = await cluster.switch("prefill-0", D)
        assert (became.worker_id, became.tier, became.address) == ("prefill-0", D, before.address)
        assert became.incarnation != before.incarnation
        await cluster.routable(prefill_0=D, prefill_1=P, decode_0=D, decode_1=D)
        steps = engine.steps
        await until(lambda: engine.steps > steps)  # it decodes now, with the engine that it had
        back = await cluster.switch("prefill-0", P)
        await cluster.routable(prefill_0=P, prefill_1=P, decode_0=D, decode_1=D)
        steps = engine.steps
        await until(lambda: engine.steps > steps)
        assert len({before.incarnation, became.incarnation, back.incarnation}) == 3
        stop.set()
        assert sum(await asyncio.gather(*clients)) > 4
        for name in cluster.processes:
            await until_at_rest(cluster, name)


async def until_at_rest(cluster: WorkerCluster, name: str) -> None:
    """Waits until a worker holds nothing of any request."""
    async with asyncio.timeout(20):
        while True:
            _, load = await cluster.describe(name)
            if not (load.handoffs or load.counters["blocks_held"] or load.counters["live_requests"]):
                return
            await asyncio.sleep(0.01)


async def test_switched_worker_is_whole():
    """The only worker left of a tier is one that was of the other: it hands over, or takes over, as if born so."""
    async with worker_cluster(2, 1) as cluster:
        await cluster.switch("prefill-0", D)
        await cluster.switch("decode-0", P)
        await cluster.routable(prefill_0=D, prefill_1=P, decode_0=P)
        for number in range(4):
            await cluster.check([number, *PROMPT], 12)
        _, load = await cluster.describe("prefill-0")
        assert load.counters["sink_fetches_total"] > 0
        assert load.counters["prefilled_tokens"] == 0
        health = cluster.processes["prefill-0"]._server._health  # type: ignore[union-attr]
        assert "baton.v1.DecodeService" in health._states
        assert "baton.v1.PrefillService" not in health._states


async def test_a_frontend_with_a_static_list_follows():
    """It routes to a worker by the role that it has taken, not by the one in the list, and back again."""
    async with worker_cluster(1, 2) as cluster:
        workers = ",".join(f"{name.partition('-')[0]}={address}" for name, address in cluster.addresses.items())
        flags = {"port": 0, "metrics_port": 0, "model": str(text_checkpoint()), "served_model_name": "fake"}
        frontend = FrontendProcess(FrontendSettings(workers=workers, **flags))  # type: ignore[arg-type]
        await frontend.start()
        listed = WorkerCluster(cluster.directory, frontend)
        try:
            for tier in (P, D):
                await cluster.switch("decode-1", tier)
                await listed.routable(prefill_0=P, decode_0=D, decode_1=tier)
                await asyncio.gather(*(listed.check([number, *PROMPT], 12) for number in range(8)))
        finally:
            await listed.close()
            await frontend.stop()


async def test_decode_becomes_colocated():
    """Every tier can be taken, colocated included, and what is served already is left alone."""
    async with worker_cluster(0, 1) as cluster:
        before, _ = await cluster.describe("decode-0")
        assert await cluster.switch("decode-0", D) == before
        await cluster.switch("decode-0", C)
        await cluster.routable(decode_0=C)
        await cluster.check(PROMPT, 8)


async def test_role_that_cannot_start_is_rolled_back():
    """The new tier fails to build: the worker serves its old one again, the caller learns why, nothing is left."""
    async with worker_cluster(1, 1) as cluster:
        process = cluster.processes["prefill-0"]

        def fail(parts: Parts) -> Any:
            raise RuntimeError("no pool for you")

        process._builds[D] = fail
        with pytest.raises(RoleRefused, match=r"no pool for you.*prefill tier again"):
            await cluster.switch("prefill-0", D)
        await cluster.routable(prefill_0=P, decode_0=D)
        await cluster.check(PROMPT, 8)
        assert cluster.engines["prefill-0"].steps > 0
        labels = {"tier": "decode", "outcome": "rolled_back"}
        assert process._registry.get_sample_value("baton_worker_role_switches_total", labels) == 1
        assert process.fatal.error is None


async def test_role_that_the_directory_refuses_is_rolled_back(monkeypatch: pytest.MonkeyPatch):
    """A worker that cannot register in its new tier is not lost to the cluster."""
    async with worker_cluster(1, 1) as cluster:
        register = cluster.directory._service._registry.register

        def picky(worker: Any, now: float) -> Any:
            if worker.worker_id == "prefill-0" and worker.tier is D:
                monkeypatch.setattr("services.worker.process.REGISTRATION_WAIT_S", 20.0)  # for the way back
                raise InvalidRequest([])
            return register(worker, now)

        monkeypatch.setattr(cluster.directory._service._registry, "register", picky)
        monkeypatch.setattr("services.worker.process.REGISTRATION_WAIT_S", 1.0)
        with pytest.raises(RoleRefused, match="did not register"):
            await cluster.switch("prefill-0", D)
        await cluster.routable(prefill_0=P, decode_0=D)
        await cluster.check(PROMPT, 8)


async def test_second_switch_waits_its_turn():
    """While one switch runs another one is refused; the first goes on though its caller left."""
    async with worker_cluster(2, 1) as cluster:
        engine = cluster.engines["prefill-0"]
        asking = await held_requests(cluster, engine)
        switching = asyncio.create_task(cluster.switch("prefill-0", D))
        await until(lambda: cluster.processes["prefill-0"]._switch is not None)
        with pytest.raises(RoleRefused, match="under way"):
            await cluster.switch("prefill-0", C)
        switching.cancel()
        engine.gate.set()
        await cluster.routable(prefill_0=D, prefill_1=P, decode_0=D)
        await asyncio.gather(*asking)


async def test_sigterm_during_a_switch():
    """A process that is told to leave while it switches takes no new role and ends cleanly."""
    async with worker_cluster(2, 1) as cluster:
        process, engine = cluster.processes["prefill-0"], cluster.engines["prefill-0"]
        asking = await held_requests(cluster, engine)
        switching = asyncio.create_task(cluster.switch("prefill-0", D))
        await until(lambda: process._switch is not None)
        leaving = asyncio.create_task(process.drain(asyncio.get_running_loop().time() + 20))
        await until(lambda: process._is_leaving)
        engine.gate.set()
        await leaving
        await asyncio.gather(switching, return_exceptions=True)
        await process.stop()
        await cluster.routable(prefill_1=P, decode_0=D)
        await asyncio.gather(*asking)
        assert process.fatal.error is None
