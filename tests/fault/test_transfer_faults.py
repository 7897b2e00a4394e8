"""F13 and F14: KV that is hurt on its way is fetched again or computed again, and never decoded."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest

from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.transport.gloo import open_gloo
from tests.harness.fake_engine import FakeEngine, FakeLimits, expected_tokens
from tests.harness.faulty_transport import HURTS, Fault, FaultPlan, RandomFaults, faulty
from tests.harness.split_cluster import SplitCluster, split_cluster

LIMITS = FakeLimits(num_blocks=512, max_num_seqs=16)
DEADLINE_S = 60.0
TOKENS = 6
GREEDY = SamplingParams(temperature=0.0)
# Those whose other side notices only by its time limit take seconds.
SOON = [Fault.CORRUPT, Fault.ZERO, Fault.TRUNCATE, Fault.BREAK]
CONCURRENCY = 16
FLOOR_S = TransferConfig().operation_floor_s


@dataclass
class Outcome:
    """How many requests ended OK, out of how many, and what the others ended with."""

    asked: int
    ok: int
    others: list[str]


@contextlib.asynccontextmanager
async def hurt_cluster(plan: FaultPlan, *, block_size: int = 4) -> AsyncIterator[SplitCluster]:
    """A cluster whose prefill worker sends through a transport that hurts messages as planned."""
    engines = (FakeEngine(LIMITS, block_size=block_size), FakeEngine(LIMITS, block_size=block_size))
    own = {Tier.PREFILL: {"transports": {"gloo": faulty(open_gloo, plan)}}}
    async with split_cluster(engines=engines, own=own, kv_operation_floor_s=FLOOR_S) as cluster:
        yield cluster
        await cluster.at_rest()


async def ask_many(cluster: SplitCluster, count: int, seed: int) -> Outcome:
    """Asks requests of different prompts; each gets its right tokens or a typed error."""
    rng = random.Random(seed)
    prompts = [rng.choices(range(97), k=rng.randint(2, 120)) for _ in range(count)]
    gate = asyncio.Semaphore(CONCURRENCY)
    outcome = Outcome(count, 0, [])

    async def one(prompt: list[int]) -> None:
        async with gate:
            try:
                found = await cluster.tokens(prompt, max_tokens=TOKENS, timeout_s=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                outcome.others.append(error.code().name)
                return
        assert found == expected_tokens(prompt, GREEDY, TOKENS)
        outcome.ok += 1

    await asyncio.gather(*(one(prompt) for prompt in prompts))
    return outcome


@pytest.mark.parametrize("fault", HURTS)
async def test_hurt_kv_is_never_decoded(fault: Fault):
    """One message of a transfer is hurt: the answer is right all the same, and the fault was noticed."""
    plan = FaultPlan({1: fault})
    async with hurt_cluster(plan) as cluster:
        for seed in range(3, 13):  # while a loaded machine still builds the first channel, decode runs prompts alone
            outcome = await ask_many(cluster, 4, seed)
            assert outcome == Outcome(4, 4, [])
            if plan.reached.is_set():
                break
        counters = cluster.decode.tier.load().counters
    assert plan.reached.is_set()
    assert counters["sink_refetches_total"] + counters["sink_fetch_failures_total"] > 0


async def test_some_transfers_fail_at_random():
    """One message in five is hurt: every request is right, and nearly all end well."""
    plan = RandomFaults(0.2, SOON, seed=11)
    async with hurt_cluster(plan) as cluster:
        outcome = await ask_many(cluster, 60, seed=4)
    assert plan.num_hurt >= 6
    assert set(outcome.others) <= {"UNAVAILABLE", "DATA_LOSS"}
    assert outcome.ok >= 0.99 * outcome.asked


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_five_percent_of_500_transfers_fail():
    """500 requests, 5 % of the messages hurt in any way: 100 % right, at least 99 % OK."""
    plan = RandomFaults(0.05, HURTS, seed=12)
    async with hurt_cluster(plan) as cluster:
        outcome = await ask_many(cluster, 500, seed=5)
        refetches = cluster.decode.tier.load().counters["sink_refetches_total"]
    print(f"{outcome.ok} of 500 OK, {plan.num_hurt} messages hurt, {refetches} fetches repeated")  # noqa: T201
    assert plan.num_hurt >= 15
    assert outcome.ok >= 495, outcome.others
