"""The directory over real sockets: registration, watching, and life without it."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from baton.v1 import kv_directory_pb2 as pb

from services.common.errors import InvalidRequest, PeerUnreachable
from services.common.types import Membership, Tier
from services.kvtransfer.directory import client as client_module
from services.kvtransfer.directory.client import DirectoryClient, watch_membership
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.convert import membership_from_proto
from services.kvtransfer.directory.registration import RENEWALS_PER_LEASE, Registration
from services.kvtransfer.directory.server import DirectoryProcess
from tests.harness.scripted_workers import eventually
from tests.harness.workers import worker_info

WAIT_S = 20.0


@contextlib.asynccontextmanager
async def directory(port: int = 0, lease_s: float = 0.6) -> AsyncIterator[DirectoryProcess]:
    process = DirectoryProcess(DirectorySettings(port=port, metrics_port=0, lease_s=lease_s))
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


@contextlib.asynccontextmanager
async def client_of(process: DirectoryProcess) -> AsyncIterator[DirectoryClient]:
    client = DirectoryClient(f"127.0.0.1:{process.port}")
    try:
        yield client
    finally:
        await client.close()


def watch_of(client: DirectoryClient) -> contextlib.aclosing[AsyncGenerator[Membership, None]]:
    return contextlib.aclosing(client.watch())


def ids(membership: Membership) -> list[str]:
    return [worker.worker_id for worker in membership.workers]


def hears_nobody(incarnation: str) -> bool:
    return False


async def until(watch: AsyncIterator[Membership], *names: str) -> Membership:
    """The first membership that has exactly these workers."""
    async with asyncio.timeout(WAIT_S):
        async for membership in watch:
            if ids(membership) == list(names):
                return membership
    raise AssertionError("the watch ended")


async def test_watchers_see_joins_refusals_and_leaves():
    """Each change is one whole snapshot."""
    async with directory(lease_s=60) as process, client_of(process) as client, watch_of(client) as watch:
        assert (await until(watch)).workers == ()
        registered = await client.register(worker_info("p"))
        assert registered.lease_s == 60
        assert (await until(watch, "p")).workers == (worker_info("p"),)
        refused = (await client.register(worker_info("d", Tier.DECODE, head_dim=32))).refused_pairs
        assert "head_dim" in refused[0].reason
        assert (await until(watch, "d", "p")).refused_pairs == refused
        await client.deregister("p", "i1")
        assert (await until(watch, "d")).refused_pairs == ()


async def test_a_worker_that_does_not_renew_is_dropped():
    """Its lease ends by the directory's own clock, without any call."""
    async with directory() as process, client_of(process) as client, watch_of(client) as watch:
        await client.register(worker_info("p"))
        await until(watch, "p")
        await until(watch)


async def test_a_restarted_worker_is_replaced_at_once_and_its_zombie_refused():
    """Identity is name and incarnation."""
    async with directory(lease_s=60) as process, client_of(process) as client:
        await client.register(worker_info("p", incarnation="old"))
        await client.register(worker_info("p", incarnation="new"))
        with pytest.raises(InvalidRequest, match="incarnation"):
            await client.register(worker_info("p", incarnation="old"))
        await client.deregister("p", "old")
        async with watch_of(client) as watch:
            assert [worker.incarnation for worker in (await until(watch, "p")).workers] == ["new"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"worker_id": "x" * 129}, "worker.worker_id"),
        ({"worker_id": ""}, "worker.worker_id"),
        ({"incarnation": ""}, "worker.incarnation"),
        ({"address": "nowhere"}, "worker.address"),
        ({"total_blocks": 0}, "worker.total_blocks"),
        ({"layout": dataclasses.replace(worker_info("p").layout, num_layers=-1)}, "worker.layout.num_layers"),
        ({"layout": dataclasses.replace(worker_info("p").layout, transports=("t",) * 9)}, "worker.layout.transports"),
    ],
)
async def test_a_worker_that_makes_no_sense_is_refused(changes: dict[str, object], field: str):
    """The field is named and nobody joins."""
    async with directory(lease_s=60) as process, client_of(process) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.register(dataclasses.replace(worker_info("p"), **changes))
        assert [violation.field for violation in caught.value.violations] == [field]
        assert process.stats()["prefill_workers"] == 0


async def test_a_registration_holds_over_many_leases_and_ends_with_close():
    """Renewed in time, deregistered explicitly."""
    async with directory() as process, client_of(process) as client:
        registration = Registration(f"127.0.0.1:{process.port}", lambda: worker_info("p"))
        registration.start()
        assert await registration.wait_registered(WAIT_S)
        async with watch_of(client) as watch:
            await until(watch, "p")
            change = asyncio.ensure_future(anext(watch))
            await eventually(lambda: registration.stats()["renewals"] >= 3 * RENEWALS_PER_LEASE)
            assert not change.done()
            change.cancel()
            await asyncio.gather(change, return_exceptions=True)
        await registration.close()
        assert process.stats()["prefill_workers"] == 0
        await registration.close()


async def test_a_registration_survives_a_restart_of_the_directory():
    """The new directory learns of the worker without anybody's help; the worker does not notice."""
    async with directory() as process:
        port = process.port
        registration = Registration(f"127.0.0.1:{port}", lambda: worker_info("p"))
        registration.start()
        assert await registration.wait_registered(WAIT_S)
    async with directory(port) as process, client_of(process) as client, watch_of(client) as watch:
        await until(watch, "p")
    await registration.close()


async def test_a_registration_starts_without_a_directory_and_closes_quickly():
    """Neither start nor close waits for a directory that is away."""
    async with directory() as process:
        address = f"127.0.0.1:{process.port}"
    registration = Registration(address, lambda: worker_info("p"))
    registration.start()
    await eventually(lambda: registration.stats()["registration_failures"] >= 1)
    assert not registration.is_registered
    async with asyncio.timeout(WAIT_S):
        await registration.close()


async def test_a_watch_keeps_what_it_knows_while_the_directory_is_away():
    """After a restart, members that do not come back are dropped when the grace ends, the others never leave."""
    async with directory() as process:
        port = process.port
        address = f"127.0.0.1:{port}"
        staying = Registration(address, lambda: worker_info("p"))
        staying.start()
        async with client_of(process) as client:
            await client.register(worker_info("d", Tier.DECODE))
        watch = watch_membership(address, hears_nobody, grace_s=2.0)
        await until(watch, "d", "p")
    seen: list[list[str]] = []
    async with directory(port):
        async with asyncio.timeout(WAIT_S):
            async for membership in watch:
                seen.append(ids(membership))
                if seen[-1] == ["p"]:
                    break
    assert all(names in (["d", "p"], ["p"]) for names in seen)
    await watch.aclose()
    await staying.close()


async def test_a_watch_keeps_whom_it_hears_and_lets_go_of_whom_it_does_not():
    """Both fell silent towards a directory that lives; one is heard by another way, until it is not."""
    heard, asked = {"heard"}, list[str]()

    def hears(incarnation: str) -> bool:
        asked.append(incarnation)
        return incarnation in heard

    async with directory(lease_s=1.5) as process, client_of(process) as client:
        watch = watch_membership(f"127.0.0.1:{process.port}", hears, grace_s=0.2)
        await until(watch)
        await client.register(worker_info("d", Tier.DECODE, incarnation="dead"))
        await client.register(worker_info("p", incarnation="heard"))
        await until(watch, "d", "p")
        await until(watch, "p")
        later = asyncio.ensure_future(anext(watch))
        await eventually(lambda: asked.count("heard") >= 3)
        assert process.stats()["prefill_workers"] == 0
        assert not later.done()
        heard.clear()
        async with asyncio.timeout(WAIT_S):
            assert ids(await later) == []
        await watch.aclose()


async def test_a_watch_without_a_directory_waits_and_then_begins():
    """A frontend may start before the directory."""
    async with directory() as process:
        port = process.port
    watch = watch_membership(f"127.0.0.1:{port}", hears_nobody)
    first = asyncio.ensure_future(anext(watch))
    done, _ = await asyncio.wait([first], timeout=0.3)
    assert not done
    async with directory(port):
        async with asyncio.timeout(WAIT_S):
            assert (await first).workers == ()
    await watch.aclose()


async def test_a_watch_outlives_any_error(monkeypatch: pytest.MonkeyPatch):
    """A snapshot that raises what nobody expects is lost, but not the watch: the next one comes."""
    errors: list[Exception] = [ValueError("a bug"), PeerUnreachable("gone")]

    def convert(message: pb.WatchResponse) -> Membership:
        if errors:
            raise errors.pop(0)
        return membership_from_proto(message)

    monkeypatch.setattr(client_module, "membership_from_proto", convert)
    async with directory() as process:
        watch = watch_membership(f"127.0.0.1:{process.port}", hears_nobody)
        await until(watch)
        assert not errors
        await watch.aclose()


async def test_a_watch_that_is_closed_leaves_nothing_behind():
    """No task, no watcher."""
    async with directory() as process:
        before = asyncio.all_tasks()
        watch = watch_membership(f"127.0.0.1:{process.port}", hears_nobody)
        await until(watch)
        assert process.stats()["watchers"] == 1
        await watch.aclose()
        async with client_of(process) as client:
            # The directory notices the cancelled watch no later than it answers another call on its loop.
            async with asyncio.timeout(WAIT_S):
                while process.stats()["watchers"]:
                    await client.deregister("nobody", "none")
        leftover = {task for task in asyncio.all_tasks() - before if not task.done()}
        assert not [task for task in leftover if "directory-watch" in task.get_name()]


async def test_a_stopped_directory_ends_watches_and_frees_its_port():
    """Plain watches end, calls say that nobody is there, and the port can be bound again."""
    async with directory() as process:
        client = DirectoryClient(f"127.0.0.1:{process.port}")
        watch = client.watch()
        await until(watch)
        await process.stop()
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(PeerUnreachable):
                assert [ids(membership) async for membership in watch] == []
        with pytest.raises(PeerUnreachable):
            await client.register(worker_info("p"))
        await client.close()
        async with directory(process.port):
            pass
