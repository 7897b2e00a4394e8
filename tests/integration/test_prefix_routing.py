"""Routing by prefix over real workers: what one has computed draws the next request of the same prefix to it."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from baton.v1 import generation_pb2 as pb

from services.common.types import Tier
from services.frontend.routing.candidate import Candidate
from tests.harness.fake_engine import FakeEngine, FakeLimits
from tests.harness.split_cluster import SplitCluster, split_cluster
from tests.harness.tiers import TierServer, running, until

PREFIX = list(range(10, 50))
BLOCK_SIZE = 4


@contextlib.asynccontextmanager
async def two_of_each(num_blocks: int = 64, **policies: str) -> AsyncIterator[SplitCluster]:
    """Two prefill and two decode workers behind a frontend with these policies."""
    limits = FakeLimits(num_blocks=num_blocks)
    more = (TierServer(Tier.PREFILL, FakeEngine(limits)), TierServer(Tier.DECODE, FakeEngine(limits)))
    async with running(*more), split_cluster(limits, more=more, frontend=policies) as cluster:
        yield cluster


def candidates(cluster: SplitCluster) -> tuple[Candidate, ...]:
    """The workers as the router sees them now."""
    return cluster.frontend.members.snapshot().candidates


async def ask(cluster: SplitCluster, tail: int, salt: str = "") -> Any:
    """One request of the shared prefix with a tail of its own, sent once no report is older than the last one's end."""
    await until(lambda: not any(each.requests or each.outstanding_tokens for each in candidates(cluster)))
    tokens = pb.TokenPrompt(token_ids=[*PREFIX, tail])
    request = pb.GenerateRequest(tokens=tokens, cache_salt=salt, sampling={"temperature": 0.0, "max_tokens": 4})
    return [message async for message in cluster.stub.Generate(request, timeout=20.0)][-1].completion


def known(cluster: SplitCluster, worker_id: str) -> set[int]:
    """Blocks that the frontend believes a worker to have."""
    return next(set(each.known_blocks) for each in candidates(cluster) if each.worker_id == worker_id)


def matched(cluster: SplitCluster, tier: str) -> float:
    """Prompt tokens that the frontend thought to be cached where it sent them."""
    name = "baton_frontend_prefix_matched_tokens_total"
    return cluster.frontend.registry.get_sample_value(name, {"tier": tier}) or 0.0


async def test_shared_prefix_goes_to_the_worker_that_has_it() -> None:
    """After one request all others of its prefix hit the same prefill worker's cache, as the frontend foresaw."""
    async with two_of_each(prefill_policy="prefix-aware") as cluster:
        first = await ask(cluster, 90)
        assert first.usage.cached_tokens == 0
        await until(lambda: len(known(cluster, first.prefill_worker_id)) == len(PREFIX) // BLOCK_SIZE)
        later = [await ask(cluster, tail) for tail in range(91, 95)]
        assert {each.prefill_worker_id for each in later} == {first.prefill_worker_id}
        assert {each.usage.cached_tokens for each in later} == {len(PREFIX)}
        assert matched(cluster, "prefill") == 4 * len(PREFIX)


async def test_other_policies_watch_no_cache_and_spread_the_prefix() -> None:
    """The cost of knowing is paid only by who wants to know; by tokens, idle workers take turns."""
    async with two_of_each() as cluster:
        seen = {(await ask(cluster, tail)).prefill_worker_id for tail in range(90, 94)}
        assert len(seen) == 2
        assert not any(known(cluster, worker_id) for worker_id in seen)


async def test_decode_worker_with_the_prefix_is_preferred() -> None:
    """What decode fetched once it need not fetch again."""
    async with two_of_each(decode_policy="prefix-aware") as cluster:
        first = await ask(cluster, 90)
        await until(lambda: len(known(cluster, first.decode_worker_id)) >= len(PREFIX) // BLOCK_SIZE)
        later = [await ask(cluster, tail) for tail in range(91, 95)]
        assert {each.decode_worker_id for each in later} == {first.decode_worker_id}
        assert matched(cluster, "decode") == 4 * len(PREFIX)


async def test_another_salt_is_drawn_to_nobody() -> None:
    """Tenants share no cache, and a frontend does not pretend that they do."""
    async with two_of_each(prefill_policy="prefix-aware") as cluster:
        first = await ask(cluster, 90, salt="one")
        await until(lambda: len(known(cluster, first.prefill_worker_id)) > 0)
        others = [await ask(cluster, tail, salt=f"other-{tail}") for tail in range(4)]
        assert {each.usage.cached_tokens for each in others} == {0}
        assert matched(cluster, "prefill") == 0


async def test_evicted_blocks_are_no_longer_believed_in() -> None:
    """However often a small pool makes room: in the end the frontend knows just the blocks that are there."""
    async with two_of_each(num_blocks=16, prefill_policy="prefix-aware") as cluster:
        journal = cluster.prefill.tier.blocks
        for start in range(50):  # until this worker, one of two, has had enough of them
            await cluster.tokens([start, *range(start, start + 45)], max_tokens=2)
            if journal.position > 2 * len(journal) > 0:
                break
        assert journal.position > 2 * len(journal) > 0  # most of what it has told came and went
        there = set(journal.since(None).changes.added)
        await until(lambda: known(cluster, cluster.prefill.info.worker_id) == there)
