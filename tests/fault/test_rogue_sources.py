"""Sources of KV that give hostile answers: every fetch ends in time and typed, and writes nowhere but its blocks.

A longer run, or the one that found something:

    BATON_TEST_FUZZ_CALLS=5000 BATON_TEST_FUZZ_SEED=7 pytest -m slow tests/fault/test_rogue_sources.py
"""

import asyncio
import collections
import os
import time
from dataclasses import replace

import pytest

from services.common.error_kinds import Retry
from services.common.errors import BatonError, DeadlineExceeded, error_classes
from services.kvtransfer.client import SHORTEST_LEASE_S
from tests.harness.fuzz.rogue_source import RogueSource
from tests.harness.kv_pair import CONFIG, NUM_TOKENS, Pair, kv_pair, until

SEED = int(os.environ.get("BATON_TEST_FUZZ_SEED", "1"))
CALLS = int(os.environ.get("BATON_TEST_FUZZ_CALLS", "120"))
QUICK_CALLS = 16
MORE_TIMES = 8
SHARE = 0.15
TIMEOUT_S = 2.0
# A fetch that has not ended so long after its deadline hangs; the machine may be loaded.
GRACE_S = 20.0
IMPATIENT = replace(
    CONFIG, operation_floor_s=0.5, connect_timeout_s=1.0, channel_wait_s=1.0, refetch_s=0.5, call_timeout_s=1.0
)
# Blocks of the fetches that run at once; no fetch has the others.
TABLES = [tuple(range(first, first + 6)) for first in range(1, 25, 6)]
OTHERS = tuple(range(25, 61))


class Fetches:
    """Fetches from one rogue source, and what was wrong with how they ended."""

    def __init__(self, pair: Pair) -> None:
        self.ends: collections.Counter[str] = collections.Counter()
        self.findings: list[str] = []
        self._pair = pair

    async def many(self, count: int) -> None:
        """Fetches so many tickets, some of them at the same time."""
        done = self.ends.total()
        numbers = iter(range(done, done + count))

        async def work(blocks: tuple[int, ...]) -> None:
            for number in numbers:
                await self._fetch(number, blocks)

        async with asyncio.TaskGroup() as group:
            for blocks in TABLES:
                group.create_task(work(blocks))

    async def _fetch(self, number: int, blocks: tuple[int, ...]) -> None:
        ticket_id = f"t{number}"
        self._compute(ticket_id, blocks, salt=number)
        try:
            async with asyncio.timeout(TIMEOUT_S + GRACE_S):
                await self._pair.fetch(ticket_id, blocks=blocks, timeout_s=TIMEOUT_S)
            end = "OK"
            if not self._pair.kv.holds(blocks, 0, NUM_TOKENS, salt=number):
                self.findings.append(f"{ticket_id}: ended well with wrong KV")
        except TimeoutError:
            end = "HANG"
        except BatonError as error:
            end = type(error).__name__
            if error.retry is Retry.NEVER and not isinstance(error, DeadlineExceeded):
                self.findings.append(f"{ticket_id}: {end} would end its request: {error.message}")
        self.ends[end] += 1
        self._pair.left.source.release(ticket_id)

    def _compute(self, ticket_id: str, blocks: tuple[int, ...], salt: int) -> None:
        """A prefill whose KV no other ticket has."""
        left = self._pair.left
        left.open(ticket_id, blocks=blocks)
        left.kv.fill(blocks, 0, NUM_TOKENS, salt)
        left.source.advance(ticket_id, NUM_TOKENS)
        left.finish(ticket_id)


async def _do_no_harm(count: int, seed: int) -> None:
    rogue = RogueSource(seed, SHARE)
    async with kv_pair(IMPATIENT, bind=rogue.binding) as pair:
        fetches = Fetches(pair)
        await fetches.many(count)
        for _ in range(MORE_TIMES):  # a few fetches may all have been hurt
            if not fetches.ends["OK"]:
                await fetches.many(count)
        print(f"{rogue.num_hurt} messages hurt", *fetches.ends.items(), sep="\n")  # noqa: T201
        assert not fetches.findings, f"seed {seed}:\n" + "\n".join(fetches.findings)
        assert fetches.ends.keys() <= {"OK", *error_classes()}
        assert fetches.ends["OK"]
        assert len(fetches.ends) > 1, "nothing that was hurt was noticed"
        assert pair.kv.is_blank(OTHERS, 0, len(OTHERS) * pair.kv.layout.block_size)
        rogue.is_hostile = False
        await _serves_again(pair)


async def _serves_again(pair: Pair) -> None:
    """Nothing is left of any fetch, and an honest source is believed again."""
    await until(lambda: not any(pair.sink.stats()[name] for name in ("fetches", "background_calls")))
    pair.left.prefill("honest")
    async with asyncio.timeout(30):
        while True:
            try:
                await pair.fetch("honest", blocks=TABLES[0])
            except BatonError:
                continue
            break
    assert pair.kv.holds(TABLES[0], 0, NUM_TOKENS)


async def test_hostile_answers_of_a_source_do_no_harm():
    """A few fetches, in which one answer in seven is hostile."""
    await _do_no_harm(QUICK_CALLS, SEED)


@pytest.mark.parametrize("lease_s", [0.0, -1e15])
async def test_a_lease_that_cannot_be_is_not_believed(lease_s: float, monkeypatch: pytest.MonkeyPatch):
    """It would be renewed without a pause for as long as a seat is waited for."""

    async def leased(ticket_id: str, deadline: float) -> float:
        return lease_s

    async with kv_pair(IMPATIENT) as pair:
        monkeypatch.setattr(pair.left.source, "await_ticket", leased)
        deadline = time.monotonic() + TIMEOUT_S + GRACE_S
        assert await pair.sink.await_ticket(pair.left.handoff("t"), "request", deadline) == SHORTEST_LEASE_S


@pytest.mark.slow
@pytest.mark.timeout(max(300, 2 * CALLS))
async def test_many_hostile_answers_of_a_source_do_no_harm():
    """As the short run, over many more."""
    await _do_no_harm(CALLS, SEED + 100)
