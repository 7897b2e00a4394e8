"""F12: faults of the network on every link: found by heartbeat, no wait past a deadline, right tokens or a typed error.

Two pairs of workers serve one frontend; all links of the first pair lead through proxies (`tests/harness/hurt_links`).
Requests run when the fault comes, and more are sent while it lasts.
"""

import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from services.common.sampling import SamplingParams
from services.kvtransfer.config import TransferConfig
from tests.harness.checkpoints import random_prompt
from tests.harness.fake_engine import FakeEngine, expected_tokens
from tests.harness.hurt_links import HurtPair, hurt_pair
from tests.harness.link import BROKEN, SLOW, Hurt
from tests.harness.split_cluster import SplitCluster, split_cluster
from tests.harness.tiers import at_rest, until

DEADLINE_S = 30.0
# C1 allows a second; the rest is for a loaded machine.
GRACE_S = 5.0
# A control link is found by three heartbeats of 0.5 s. On a data link a message has 1.5 s from its announcement, then
# the next channel 1 s; what was lost is computed again.
FOUND_S = 3.0
# A new request, after any single fault.
NEW_S = 5.0
# By then gRPC has stopped to measure the connection by pings of its own.
QUIET_S = 15.0
TOKENS = 40
STEP_S = 0.01
EACH = 6


LINKS = ("prefill_control", "decode_control", "data")
QUICK = {("reset", "prefill_control"), ("reset", "decode_control"), ("reset", "data"), ("cut", "data")}
SLOW_CASES = {(how, "data") for how in BROKEN if "black hole" in how}


def cases(faults: dict[str, Hurt]) -> list[object]:
    """Every fault on every link; those that end soon by default, some as slow tests, the others as long ones."""
    return [pytest.param(link, how, marks=marks(how, link), id=f"{how} on {link}") for how in faults for link in LINKS]


def marks(how: str, link: str) -> list[pytest.MarkDecorator]:
    """When a case runs."""
    if (how, link) in QUICK:
        return []
    return [pytest.mark.slow if (how, link) in SLOW_CASES else pytest.mark.long]


@dataclasses.dataclass
class End:
    """How a request ended: its status, tokens, and seconds."""

    status: str
    tokens: list[int]
    expected: list[int]
    took_s: float


class Network:
    """The frontend, the pair whose links are hurt, and the requests."""

    def __init__(self, cluster: SplitCluster, pair: HurtPair) -> None:
        self.cluster = cluster
        self.pair = pair
        self._count = 0

    def ask(self, count: int) -> list[asyncio.Task[End]]:
        """Starts requests."""
        self._count += count
        return [asyncio.create_task(self._one(self._count + number)) for number in range(count)]

    async def _one(self, seed: int) -> End:
        prompt = [token % 97 for token in random_prompt(20, seed)]
        expected = expected_tokens(prompt, SamplingParams(temperature=0.0), TOKENS)
        started = time.monotonic()
        found: list[int] = []
        status = "OK"
        call = self.cluster.start(prompt, timeout_s=DEADLINE_S, max_tokens=TOKENS)
        try:
            async for message in call:
                found += [token.id for delta in message.deltas for token in delta.tokens]
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        return End(status, found, expected, time.monotonic() - started)

    async def at_rest(self) -> None:
        """Nothing of any request is left on any of the four workers or in the frontend."""
        await self.cluster.at_rest()
        await at_rest(self.pair.prefill, self.pair.decode)

    async def hurt_pair_serves(self) -> None:
        """Waits until requests go over the pair again."""
        before = self._received()
        async with asyncio.timeout(60):
            while self._received() <= before:
                await asyncio.gather(*self.ask(4))

    def _received(self) -> int:
        """Messages of KV that the pair's decode worker has got, from whom ever."""
        return self.pair.decode.tier.load().counters.get("sink_received_messages", 0)


@contextlib.asynccontextmanager
async def network() -> AsyncIterator[Network]:
    """All four workers and the frontend, warm: every link has carried something."""

    def engine() -> FakeEngine:
        made = FakeEngine()
        made.on_step = lambda _: time.sleep(STEP_S)
        return made

    async with (
        hurt_pair(engine) as pair,
        # The other decode worker fetches over the data link, too, and must find it dead as soon.
        split_cluster(
            more=(pair.prefill, pair.decode),
            engines=(engine(), engine()),
            kv_operation_floor_s=TransferConfig().operation_floor_s,
        ) as cluster,
    ):
        running = Network(cluster, pair)
        await running.hurt_pair_serves()
        await running.at_rest()
        yield running


async def play(running: Network, link: str, how: Hurt) -> list[End]:
    """Hurts the link under load, asks more, heals; everything ends in time, right or typed, and nothing is left."""
    early = running.ask(EACH)
    await until(lambda: running.pair.decode.tier.load().counters["live_requests"] > 0)
    getattr(running.pair, link).hurt(how)
    late = running.ask(EACH)
    ends = await asyncio.gather(*early, *late)
    await getattr(running.pair, link).heal()
    for end in ends:
        assert end.took_s < DEADLINE_S + GRACE_S
        assert end.tokens == end.expected[: len(end.tokens)]
        assert end.status in ("OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"), end
        assert end.status != "OK" or end.tokens == end.expected
    await running.at_rest()
    await running.hurt_pair_serves()
    await running.at_rest()
    return list(ends)


@pytest.mark.parametrize(("link", "how"), cases(BROKEN))
@pytest.mark.timeout(180)
async def test_a_broken_link_costs_no_request(link: str, how: str):
    """Every request ends well, on another way if need be, and soon; the link is used again afterwards."""
    async with network() as running:
        ends = await play(running, link, BROKEN[how])
        assert [end.status for end in ends] == ["OK"] * len(ends)
        slowest = max(end.took_s for end in ends)
        sys.stdout.write(f"{how} on {link}: the slowest request took {slowest:.2f} s\n")
        assert slowest < FOUND_S + GRACE_S


@pytest.mark.long
@pytest.mark.parametrize("link", ["prefill_control", "decode_control"])
@pytest.mark.timeout(180)
async def test_a_worker_that_hears_nothing_holds_up_no_new_request(link: str):
    """It reports as before, and gRPC, on a connection that was quiet for long, takes up to 8 s to miss its answers."""
    async with network() as running:
        await asyncio.sleep(QUIET_S)
        getattr(running.pair, link).hurt(BROKEN["black hole of the other direction"])
        ends = [await one for _ in range(6) for one in running.ask(1)]
        await getattr(running.pair, link).heal()
        assert [end.status for end in ends] == ["OK"] * len(ends)
        slowest = max(end.took_s for end in ends)
        sys.stdout.write(f"nothing gets to {link}: the slowest request took {slowest:.2f} s\n")
        assert slowest < NEW_S
        await running.at_rest()


@pytest.mark.parametrize(("link", "how"), cases(SLOW))
@pytest.mark.timeout(180)
async def test_a_slow_link_costs_time_alone(link: str, how: str):
    """Every request ends well."""
    async with network() as running:
        ends = await play(running, link, SLOW[how])
        assert [end.status for end in ends] == ["OK"] * len(ends)
