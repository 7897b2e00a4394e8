"""Real models through both real tiers, in one process: the split gives transformers' own tokens."""

import asyncio
import functools
import time
from threading import Event

import pytest

from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.engine.config import EngineConfig
from services.engine.engine import Engine, load_engine
from tests.harness.checkpoints import ARCHITECTURES, random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.pauses import PausedEngine, Point
from tests.harness.tiers import WAIT_S, TierServer, at_rest, both_legs, collect, ids, running, until, work

LENGTHS = (1, 7, 16, 33, 64, 90)


@functools.cache
def engine(architecture: str, block_size: int, num_blocks: int, budget: int, max_model_len: int, name: str) -> Engine:
    """An engine of its own for each `name`; kept over tests, for its KV is worthless without block tables."""
    return load_engine(
        EngineConfig(
            checkpoint=tiny_checkpoint(architecture),
            dtype="float32",
            block_size=block_size,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
            max_num_seqs=8,
            max_num_batched_tokens=budget,
            num_threads=1,
        )
    )


def server(
    tier: Tier, architecture: str, block_size: int, num_blocks: int = 96, budget: int = 48, max_model_len: int = 160
) -> TierServer:
    """A worker over a real engine."""
    return TierServer(tier, engine(architecture, block_size, num_blocks, budget, max_model_len, tier.value))


class Held:
    """A gate that no step passes before the event, so that all requests are there when the first one runs."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def pass_by(self, point: Point, place: int) -> None:
        assert self._event.wait(WAIT_S), "the test never opened the gate"


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
async def test_split_gives_transformers_tokens(architecture: str):
    """Every architecture, mixed prompt lengths, unlike block sizes on the two sides: tokens as generate gives."""
    prefill = server(Tier.PREFILL, architecture, 16)
    decode = server(Tier.DECODE, architecture, 8)
    sampling = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    prompts = [random_prompt(length, seed=9) for length in LENGTHS]
    async with running(prefill, decode):
        results = await asyncio.gather(
            *(both_legs(prefill, decode, work(prompt, sampling), f"t{i}") for i, prompt in enumerate(prompts))
        )
        for prompt, (_, tokens, last) in zip(prompts, results, strict=True):
            assert ids(tokens[0]) == reference_tokens(tiny_checkpoint(architecture), prompt, 10)
            assert last.summary.prefilled_tokens == 0
        await at_rest(prefill, decode)


@pytest.mark.parametrize(
    ("prefill_block", "decode_block", "budget"), [(8, 32, 8), (32, 16, 33), (16, 16, 17), (8, 8, 200)]
)
async def test_block_and_chunk_sizes_do_not_matter(prefill_block: int, decode_block: int, budget: int):
    """Any block size on either side and any chunk size give the same tokens."""
    prefill = server(Tier.PREFILL, "llama", prefill_block, budget=budget)
    decode = server(Tier.DECODE, "llama", decode_block, budget=budget)
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompt = random_prompt(90, seed=4)
    async with running(prefill, decode):
        _, tokens, _ = await both_legs(prefill, decode, work(prompt, sampling), "t")
        assert ids(tokens[0]) == reference_tokens(tiny_checkpoint("llama"), prompt, 12)


async def test_prefix_hits_do_not_matter():
    """A prompt whose prefix is cached on either side gives the tokens that it gives without."""
    prefill, decode = server(Tier.PREFILL, "qwen3", 16), server(Tier.DECODE, "qwen3", 8)
    sampling = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    shared = random_prompt(64, seed=2)
    prompts = [shared, shared + random_prompt(9, seed=3), shared]
    async with running(prefill, decode):
        for i, prompt in enumerate(prompts):
            result, tokens, last = await both_legs(prefill, decode, work(prompt, sampling), f"t{i}")
            assert ids(tokens[0]) == reference_tokens(tiny_checkpoint("qwen3"), prompt, 10)
        assert result.usage.cached_tokens > 0
        assert last.summary.received_bytes == 0


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox"])
async def test_preemption_and_choices_do_not_matter(architecture: str):
    """With so few blocks that requests are preempted, n = 4 choices get what they get alone with room to spare."""
    gate = Event()
    few = server(Tier.COLOCATED, architecture, 8, num_blocks=24, budget=32)
    few.engine = PausedEngine(few.engine, Held(gate))
    plenty = server(Tier.DECODE, architecture, 8, num_blocks=400, budget=32)
    loads = [
        (random_prompt(20 + i, seed=i), SamplingParams(seed=i, max_tokens=40, n=4 if i == 0 else 1, ignore_eos=True))
        for i in range(6)
    ]
    async with running(few, plenty):
        crowding = [asyncio.create_task(collect(few.decode.decode(work(*load)))) for load in loads]
        await until(lambda: few.tier.load().counters["live_requests"] == len(loads))
        gate.set()
        crowded = await asyncio.gather(*crowding)
        alone = [await collect(plenty.decode.decode(work(*load))) for load in loads]
        assert [{c: ids(t) for c, t in tokens.items()} for tokens, _ in crowded] == [
            {c: ids(t) for c, t in tokens.items()} for tokens, _ in alone
        ]
        assert few.tier.load().counters["preemptions"] > 0
        assert plenty.tier.load().counters["preemptions"] == 0
        await at_rest(few, plenty)


async def test_seeded_choices_survive_the_split():
    """Four seeded choices with penalties are the same split and colocated."""
    prefill, decode = server(Tier.PREFILL, "llama", 16), server(Tier.DECODE, "llama", 8)
    one = server(Tier.COLOCATED, "llama", 16)
    sampling = SamplingParams(
        seed=77, n=4, max_tokens=16, top_p=0.95, top_k=40, repetition_penalty=1.1, frequency_penalty=0.2, logprobs=2
    )
    prompt = random_prompt(45, seed=8)
    async with running(prefill, decode, one):
        _, split, _ = await both_legs(prefill, decode, work(prompt, sampling), "t")
        whole, _ = await collect(one.decode.decode(work(prompt, sampling)))
        assert {c: ids(t) for c, t in split.items()} == {c: ids(t) for c, t in whole.items()}
        for choice, tokens in split.items():
            for token, other in zip(tokens, whole[choice], strict=True):
                assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert len(token.top_logprobs) == 2


@pytest.mark.slow
async def test_two_thousand_tokens_in_small_chunks():
    """A prompt of 2,000 tokens, in chunks of 96, handed over between unlike blocks, goes on as generate does."""
    prefill = server(Tier.PREFILL, "mistral", 32, num_blocks=96, budget=96, max_model_len=2200)
    decode = server(Tier.DECODE, "mistral", 16, num_blocks=192, budget=96, max_model_len=2200)
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    prompt = random_prompt(2000, seed=6)
    async with running(prefill, decode):
        _, tokens, last = await both_legs(prefill, decode, work(prompt, sampling, deadline=time.monotonic() + 100), "t")
        assert ids(tokens[0]) == reference_tokens(tiny_checkpoint("mistral"), prompt, 16)
        assert last.summary.prefilled_tokens == 0
