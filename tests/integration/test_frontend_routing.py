"""Routing as a frontend does it: policies chosen by settings, and workers that fail left out for a time."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.common.errors import ChannelBroken, Internal
from services.common.types import Load, Tier
from tests.harness.scripted_frontend import Cluster, Script, _collect, frontend, ids_of, request, tokens_of, within
from tests.harness.scripted_workers import ScriptedWorker, eventually

ANSWER = ids_of("ok")


@contextlib.asynccontextmanager
async def workers(count: int, **settings: Any) -> AsyncIterator[tuple[Cluster, list[ScriptedWorker]]]:
    """So many decode workers without prefill, each with a script of its own, behind a frontend that reaches all."""
    decodes = [ScriptedWorker(Tier.DECODE, Script(ANSWER), worker_id=f"decode-{place}") for place in range(count)]
    async with frontend(decodes, **settings) as cluster:
        await cluster.reachable(count)
        yield cluster, decodes


def asked(decodes: list[ScriptedWorker]) -> list[int]:
    """Requests that each worker has got."""
    return [len(each.requests) for each in decodes]


async def ask(cluster: Cluster, **fields: Any) -> None:
    """One request, answered in full."""
    sent = dataclasses.replace(request(), **fields)
    assert tokens_of(await within(_collect(cluster.client.generate(sent)))) == ANSWER


def counted(cluster: Cluster, name: str, **labels: str) -> float:
    """A metric of the frontend."""
    return cluster.process.registry.get_sample_value(f"baton_frontend_{name}", labels) or 0.0


@pytest.mark.parametrize(("policy", "wanted"), [("round-robin", [6, 6]), ("least-requests", [0, 12])])
async def test_policy_is_chosen_by_setting(policy: str, wanted: list[int]) -> None:
    """Round robin ignores the load that the first worker reports, least requests goes around it; picks are counted."""
    async with workers(2, decode_policy=policy) as (cluster, decodes):
        decodes[0].report(Load(running_requests=7, free_blocks=60, total_blocks=64))
        snapshot = cluster.process.members.snapshot
        await eventually(lambda: snapshot().candidates[0].load.running_requests == 7)
        for _ in range(12):
            await ask(cluster)
        assert asked(decodes) == wanted
        assert counted(cluster, "picks_total", tier="decode", policy=policy) == 12


async def test_session_stays_on_one_worker() -> None:
    """All turns of a session reach the same worker, those of many sessions more than one; both is counted."""
    async with workers(3, decode_policy="session") as (cluster, decodes):
        for _ in range(5):
            await ask(cluster, session_id="one")
        assert sorted(asked(decodes)) == [0, 0, 5]
        for place in range(10):
            await ask(cluster, session_id=f"session-{place}")
        assert sorted(asked(decodes))[1] > 0
        assert counted(cluster, "session_home_total", tier="decode") == 15


@contextlib.asynccontextmanager
async def one_ejected(first_s: float) -> AsyncIterator[tuple[Cluster, ScriptedWorker, ScriptedWorker]]:
    """Of two workers the first has just failed twice, and is left out for so many seconds."""
    settings = {"decode_policy": "round-robin", "eject_failures": 2, "eject_first_s": first_s}
    async with workers(2, **settings) as (cluster, (bad, good)):
        bad.script.decode_error = Internal("broken on purpose")
        while len(bad.requests) < 2:
            with contextlib.suppress(Internal):
                await cluster.outputs()
        yield cluster, bad, good


async def test_failing_worker_is_left_out() -> None:
    """Two failures in a row eject a worker; meanwhile the other serves all."""
    async with one_ejected(first_s=600.0) as (cluster, bad, good):
        assert counted(cluster, "ejections_total") == 1
        assert counted(cluster, "ejected", kind="worker") == 1
        before = len(good.requests)
        for _ in range(4):
            await ask(cluster)
        assert asked([bad, good]) == [2, before + 4]


async def test_ejected_worker_returns() -> None:
    """Once its time is up and it works, a worker serves again."""
    async with one_ejected(first_s=0.5) as (cluster, bad, _):
        bad.script.decode_error = None
        await eventually(lambda: not cluster.process.members.snapshot().ejected)
        for _ in range(4):
            await ask(cluster)
        assert len(bad.requests) > 2
        assert counted(cluster, "ejected", kind="worker") == 0


async def test_last_worker_is_never_left_out() -> None:
    """A tier's only worker is asked again and again, so that it serves as soon as it can."""
    async with workers(1, eject_failures=1, eject_first_s=60.0) as (cluster, decodes):
        decodes[0].script.decode_error = Internal("broken on purpose")
        for _ in range(3):
            with pytest.raises(Internal):
                await cluster.outputs()
        decodes[0].script.decode_error = None
        await ask(cluster)


async def test_client_cannot_eject_a_worker() -> None:
    """Cancelled requests and bad input are held against nobody."""
    async with workers(2, eject_failures=1) as (cluster, decodes):
        for each in decodes:
            each.script.steps.clear()
        for _ in range(4):
            async with contextlib.aclosing(cluster.generate()) as outputs:
                await within(anext(outputs))
        await cluster.idle()
        assert counted(cluster, "ejections_total") == 0


class Picky(ScriptedWorker):
    """A decode worker that gets no KV from one prefill worker."""

    broken_source = "prefill-0"

    async def Decode(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.handoff.worker_id == self.broken_source:
            raise ChannelBroken("broken on purpose")
        async for message in super().Decode(request, context):
            yield message


KINDS = {"decode-0": Picky, "decode-1": ScriptedWorker}


async def test_pair_without_a_working_channel_is_left_out() -> None:
    """Transfers that fail between two workers are held against the pair: no request is lost, both go on with others."""
    sources = [ScriptedWorker(Tier.PREFILL, Script(ANSWER), worker_id=f"prefill-{place}") for place in range(2)]
    sinks = [kind(Tier.DECODE, Script(ANSWER), worker_id=name) for name, kind in KINDS.items()]
    policies = {"prefill_policy": "round-robin", "decode_policy": "round-robin"}
    async with frontend([*sources, *sinks], **policies, eject_failures=2, eject_first_s=60.0) as cluster:
        await cluster.reachable(4)
        snapshot = cluster.process.members.snapshot
        for _ in range(40):
            await ask(cluster)
            if ("prefill-0", "decode-0") in snapshot().refused:
                break
        assert ("prefill-0", "decode-0") in snapshot().refused
        assert not snapshot().ejected
        before = asked([*sources, *sinks])
        for _ in range(12):
            await ask(cluster)
        assert all(now > then for now, then in zip(asked([*sources, *sinks]), before, strict=True))
        assert counted(cluster, "ejections_total") == 1
        assert counted(cluster, "ejected", kind="pair") == 1
