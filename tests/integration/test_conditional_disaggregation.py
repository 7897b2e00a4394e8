"""Conditional disaggregation over real workers of a known speed: who runs a prompt, and that the answer says why."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from baton.v1 import generation_pb2 as pb

from services.common.times_by_size import TimesBySize
from services.common.types import SizedTime
from services.engine.config import EngineConfig
from services.engine.engine import Engine, load_engine
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.fake_engine import FakeEngine, FakeLimits, expected_tokens
from tests.harness.split_cluster import SplitCluster, split_cluster
from tests.harness.tiers import GREEDY, until

MS = 10**6
LIMITS = FakeLimits(num_blocks=256, max_model_len=512)
SAMPLING = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
AUTO = {"conditional_disaggregation": "auto"}
SHORT, LONG = list(range(10, 20)), [token % 90 for token in range(400)]


class SaidTimes(TimesBySize):
    """Step times as a test says them: 10 ms, and 0.1 ms for each token."""

    def add(self, tokens: int, time_ns: int) -> None:
        """What a step really takes is of no interest."""

    @property
    def points(self) -> tuple[SizedTime, ...]:
        """As `TimesBySize`."""
        return tuple(SizedTime(tokens, 10 * MS + tokens * MS // 10) for tokens in (1, 16, 256))


def engine() -> FakeEngine:
    """A fake whose speed is said."""
    made = FakeEngine(LIMITS)
    made.step_times = SaidTimes()
    return made


def real_engine() -> Engine:
    """A small model whose speed is said."""
    limits = {"num_blocks": 64, "max_model_len": 512, "max_num_batched_tokens": 64}
    made = load_engine(EngineConfig(checkpoint=tiny_checkpoint(), dtype="float32", num_threads=1, **limits))
    made.step_times = SaidTimes()
    return made


@contextlib.asynccontextmanager
async def measured_cluster(prefill: Any = None, decode: Any = None) -> AsyncIterator[SplitCluster]:
    """A cluster whose frontend knows what steps and handoffs take; a handoff seems to take 5 ms."""
    async with split_cluster(frontend=AUTO, engines=(prefill or engine(), decode or engine())) as cluster:
        for tokens in (8, 512):
            for _ in range(3):
                cluster.decode.tier._worker.handoff_times.add(tokens, 5 * MS)  # type: ignore[union-attr]
        cluster.decode.tier.changes.notify()
        await until(lambda: all(each.load.step_times for each in candidates(cluster)))
        await until(lambda: any(each.load.handoff_times for each in candidates(cluster)))
        yield cluster


def candidates(cluster: SplitCluster) -> Any:
    """The workers as the router sees them now."""
    return cluster.frontend.members.snapshot().candidates


async def ask(
    cluster: SplitCluster, prompt: list[int], expected: list[int] | None = None, **fields: Any
) -> pb.Completion:
    """One request on a cluster at rest, whose tokens must be these, or those of the fake engine."""
    await until(lambda: not any(each.requests or each.outstanding_tokens for each in candidates(cluster)))
    request = pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=prompt), sampling=SAMPLING, **fields)
    messages = [message async for message in cluster.stub.Generate(request, timeout=40.0)]
    tokens = [token.id for message in messages for delta in message.deltas for token in delta.tokens]
    assert tokens == (expected or expected_tokens(prompt, GREEDY, 8))
    return messages[-1].completion


async def known_everywhere(cluster: SplitCluster, tokens: int) -> None:
    """Waits until the frontend knows so many tokens' blocks on both workers."""
    blocks = tokens // cluster.decode.info.layout.block_size
    await until(lambda: all(len(each.known_blocks) >= blocks for each in candidates(cluster)))


def counted(cluster: SplitCluster, reason: str) -> float:
    """Shortcuts taken for a reason."""
    return cluster.frontend.registry.get_sample_value("baton_frontend_shortcuts_total", {"reason": reason}) or 0.0


async def test_a_short_prompt_stays_at_decode() -> None:
    """Decode runs it alone, the answer and a metric say why, and it is no fallback."""
    async with measured_cluster() as cluster:
        completion = await ask(cluster, SHORT)
        assert (completion.shortcut, completion.fallback) == (pb.SHORTCUT_SHORT_PROMPT, pb.FALLBACK_UNSPECIFIED)
        assert completion.colocated
        assert completion.prefill_worker_id == completion.decode_worker_id == cluster.decode.info.worker_id
        assert counted(cluster, "short_prompt") == 1
        await cluster.at_rest()
        assert cluster.prefill.tier.load().counters["prefilled_tokens"] == 0


async def test_a_long_prompt_is_split_and_stays_once_it_is_cached() -> None:
    """It goes to the prefill worker; the next one that begins with it is run where its KV is."""
    async with measured_cluster() as cluster:
        first = await ask(cluster, LONG)
        assert (first.shortcut, first.colocated) == (pb.SHORTCUT_UNSPECIFIED, False)
        assert counted(cluster, "short_prompt") == counted(cluster, "cached_prompt") == 0
        await known_everywhere(cluster, len(LONG))
        second = await ask(cluster, [*LONG, *SHORT])
        assert (second.shortcut, second.colocated) == (pb.SHORTCUT_CACHED_PROMPT, True)
        assert second.usage.cached_tokens == len(LONG)
        assert counted(cluster, "cached_prompt") == 1
        other_tenant = await ask(cluster, [*LONG, *SHORT], cache_salt="other")
        assert other_tenant.shortcut == pb.SHORTCUT_UNSPECIFIED


async def test_a_real_model_gives_the_same_tokens_either_way() -> None:
    """Run by decode alone, split, and run by decode on what it has cached: tokens as transformers gives them."""
    short, long = random_prompt(12), random_prompt(300)
    ways = {
        pb.SHORTCUT_SHORT_PROMPT: short,
        pb.SHORTCUT_UNSPECIFIED: long,
        pb.SHORTCUT_CACHED_PROMPT: [*long, *short],
    }
    async with measured_cluster(real_engine(), real_engine()) as cluster:
        for shortcut, prompt in ways.items():
            completion = await ask(cluster, prompt, reference_tokens(tiny_checkpoint(), prompt, 8))
            assert (completion.shortcut, completion.colocated) == (shortcut, prompt is not long)
            if prompt is long:
                await known_everywhere(cluster, len(long))


async def test_workers_that_were_not_measured_get_the_usual_split() -> None:
    """A cluster that has just come splits every prompt, however short."""
    async with split_cluster(LIMITS, frontend=AUTO) as cluster:
        completion = await ask(cluster, SHORT)
        assert (completion.shortcut, completion.colocated) == (pb.SHORTCUT_UNSPECIFIED, False)


async def test_it_can_be_turned_off() -> None:
    """With `never` a prompt is split where decode would be the quicker way."""
    async with split_cluster(engines=(engine(), engine())) as cluster:
        cluster.decode.tier._worker.handoff_times.add(8, 5 * MS)  # type: ignore[union-attr]
        for number in range(4):
            completion = await ask(cluster, [number, *SHORT])
            assert (completion.shortcut, completion.colocated) == (pb.SHORTCUT_UNSPECIFIED, False)
        assert cluster.decode.tier.load().handoff_times
