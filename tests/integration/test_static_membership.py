"""Membership by addresses and by names, without a directory, against real workers."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from services.common.errors import PeerUnreachable
from services.common.resolve import resolve
from services.common.types import Membership, Tier
from services.frontend.config import parse_workers
from services.kvtransfer import static_source
from services.kvtransfer.static_source import StaticWorker, parse_worker, watch_static
from tests.harness.scripted_workers import Script, ScriptedWorker, within
from tests.harness.tiers import TierServer, both_legs, running, until, work


class Names:
    """A resolver that answers as a test says."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0
        self.is_down = False

    async def __call__(self, address: str) -> tuple[str, ...]:
        self.asked += 1
        if self.is_down:
            raise PeerUnreachable(f"{address} does not resolve")
        return self.addresses


@contextlib.asynccontextmanager
async def decode_workers(count: int) -> AsyncIterator[list[ScriptedWorker]]:
    """Workers on ports of their own."""
    workers = [ScriptedWorker(Tier.DECODE, Script([1]), worker_id=f"decode-{place}") for place in range(count)]
    for worker in workers:
        await worker.start()
    try:
        yield workers
    finally:
        for worker in workers:
            await worker.stop()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks again after a moment instead of after seconds."""
    monkeypatch.setattr(static_source, "_POLL_S", 0.02)
    monkeypatch.setattr(static_source, "_RESOLVE_AGAIN_S", 0.0)


def ids(membership: Membership) -> list[str]:
    """Who is a member."""
    return [worker.worker_id for worker in membership.workers]


async def somebody(memberships: AsyncIterator[Membership]) -> Membership:
    """The first membership that has a member; one that is slow to answer comes later."""
    while not (membership := await within(anext(memberships))).workers:
        pass
    return membership


@pytest.mark.usefixtures("quickly")
async def test_workers_come_and_go_with_the_addresses_of_a_name() -> None:
    """Each address is a worker; one that leaves the name is no member any more; one at two addresses is one."""
    async with decode_workers(2) as workers:
        names = Names(workers[0].address)
        watched = (StaticWorker(Tier.DECODE, "decode.test:1", is_name=True),)
        async with contextlib.aclosing(watch_static(watched, names)) as memberships:
            assert ids(await somebody(memberships)) == ["decode-0"]
            port = workers[0].address.rpartition(":")[2]
            names.addresses = (workers[0].address, f"localhost:{port}", workers[1].address)
            assert ids(await within(anext(memberships))) == ["decode-0", "decode-1"]
            names.addresses = (workers[1].address,)
            assert ids(await within(anext(memberships))) == ["decode-1"]


@pytest.mark.usefixtures("quickly")
async def test_a_name_that_does_not_resolve_keeps_its_last_addresses() -> None:
    """A name server that is down takes nobody out, and a worker that restarts meanwhile is still noticed."""
    async with decode_workers(1) as workers:
        names = Names(workers[0].address)
        watched = (StaticWorker(Tier.DECODE, "decode.test:1", is_name=True),)
        async with contextlib.aclosing(watch_static(watched, names)) as memberships:
            await somebody(memberships)
            names.is_down = True
            asked = names.asked
            await workers[0].restart()
            restarted = await within(anext(memberships))
            assert [worker.incarnation for worker in restarted.workers] == [workers[0].incarnation]
            assert names.asked > asked


@pytest.mark.usefixtures("quickly")
async def test_what_a_worker_says_counts_more_than_the_list() -> None:
    """A worker listed under another tier is a member, of its own tier; so is one that takes another role later."""
    async with decode_workers(1) as (worker,):
        tiers: list[Tier] = []
        memberships = watch_static((StaticWorker(Tier.PREFILL, worker.address),))
        async with contextlib.aclosing(memberships):
            for tier in (Tier.DECODE, Tier.PREFILL, Tier.COLOCATED):
                if tier is not worker.tier:
                    worker.tier = tier
                    await worker.restart()
                tiers += [member.tier for member in (await within(anext(memberships))).workers]
        assert tiers == [Tier.DECODE, Tier.PREFILL, Tier.COLOCATED]


async def test_nobody_there_is_said_too() -> None:
    """Whoever waits for the first membership need not wait for the first worker."""
    async with contextlib.aclosing(watch_static((StaticWorker(Tier.PREFILL, "127.0.0.1:9"),))) as memberships:
        assert ids(await within(anext(memberships))) == []


async def test_localhost_resolves_to_addresses_with_the_port() -> None:
    """By the system's resolver."""
    assert "127.0.0.1:7001" in await resolve("localhost:7001")


async def test_a_name_that_is_nobodys_is_a_typed_error() -> None:
    """Which says the name."""
    with pytest.raises(PeerUnreachable, match=r"nobody\.invalid"):
        await resolve("nobody.invalid:7001")


def test_names_are_told_from_addresses() -> None:
    """`dns:` in front makes a name of it, in the settings of the frontend and of decode workers alike."""
    assert parse_workers("prefill=dns:prefill.svc:7001, decode=10.0.0.2:9200") == (
        StaticWorker(Tier.PREFILL, "prefill.svc:7001", is_name=True),
        StaticWorker(Tier.DECODE, "10.0.0.2:9200"),
    )
    with pytest.raises(ValueError, match="not host:port"):
        parse_worker(Tier.PREFILL, "dns:prefill.svc")


async def test_a_decode_worker_opens_channels_to_peers_given_by_hand() -> None:
    """Ahead of need; it is settled then, and a handoff works."""
    prefill = TierServer(Tier.PREFILL)
    async with running(prefill):
        port = prefill.info.address.rpartition(":")[2]
        decode = TierServer(Tier.DECODE, prefill_peers=f"dns:localhost:{port}")
        async with running(decode):
            await within(decode.tier.settle(10.0))
            assert decode.tier.load().proven == (prefill.info.incarnation,)
            await both_legs(prefill, decode, work([1, 2, 3]), "t-1")


async def test_a_decode_worker_is_settled_when_a_peer_cannot_be_reached() -> None:
    """And when there is none at all, at once; it serves without."""
    lonely, unlucky = TierServer(Tier.DECODE), TierServer(Tier.DECODE, prefill_peers="127.0.0.1:9")
    async with running(lonely, unlucky):
        await within(lonely.tier.settle(60.0))
        await within(unlucky.tier.settle(60.0))
        assert unlucky.tier.load().proven == ()
        await until(lambda: not any(unlucky.tier._peers.stats().values()))
