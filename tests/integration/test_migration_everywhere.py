"""A stream that breaks is the same stream, wherever it breaks, how often, and whatever was asked for."""

import contextlib
import functools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from baton.v1 import generation_pb2 as pb

from services.common.types import Tier
from services.engine.config import EngineConfig
from services.engine.engine import Engine, load_engine
from tests.harness.checkpoints import random_prompt, tiny_checkpoint
from tests.harness.cut_links import CutLinks
from tests.harness.fake_engine import FakeEngine, FakeLimits
from tests.harness.split_cluster import SplitCluster, split_cluster
from tests.harness.tiers import TierServer, at_rest, running

PROMPT = list(range(10, 33))
LIMITS = FakeLimits(max_num_batched_tokens=16, max_num_seqs=4)
LENGTH = 12

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0, "seed": 5},
    "three choices": {"temperature": 1.0, "seed": 5, "n": 3},
    "stop token": {"temperature": 1.0, "seed": 11, "stop_token_ids": list(range(40, 48))},
    "stop token after a minimum": {"temperature": 1.0, "seed": 3, "min_tokens": 6, "stop_token_ids": list(range(60))},
}


@dataclass
class Answer:
    """What a client has seen, however it was cut into messages."""

    tokens: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    ends: dict[int, tuple[int, str]] = field(default_factory=dict)
    usage: tuple[int, int, int] = (0, 0, 0)
    seed: int = 0


async def read(call: Any) -> tuple[Answer, pb.Completion]:
    """The whole answer; each choice ends once."""
    answer, completion = Answer(), None
    async for message in call:
        for delta in message.deltas:
            choice = delta.choice_index
            answer.tokens.setdefault(choice, []).extend((token.index, token.id) for token in delta.tokens)
            answer.text[choice] = answer.text.get(choice, "") + delta.text
            assert choice not in answer.ends
            if delta.finish_reason:
                answer.ends[choice] = (delta.finish_reason, delta.stop_match)
        if message.HasField("completion"):
            completion = message.completion
    assert completion is not None
    usage = completion.usage
    answer.usage = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    answer.seed = completion.seed
    return answer, completion


@contextlib.asynccontextmanager
async def cut_cluster(patch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SplitCluster, CutLinks]]:
    """A split cluster with a second decode worker, whose decode streams a test can cut; nothing may be left after."""
    links = CutLinks().install(patch)
    spare = TierServer(Tier.DECODE, FakeEngine(LIMITS), enable_prefix_caching=False)
    settings = {"max_moves": 20}
    async with (
        running(spare),
        split_cluster(LIMITS, more=(spare,), frontend=settings, enable_prefix_caching=False) as cluster,
    ):
        yield cluster, links
        await cluster.at_rest()
        await at_rest(spare)


@pytest.mark.parametrize("kind", SAMPLINGS)
async def test_cut_at_every_token(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Wherever decode is cut, before its first token up to after its last, the answer is the same to the last count."""
    params = {"max_tokens": LENGTH, **SAMPLINGS[kind]}
    async with cut_cluster(monkeypatch) as (cluster, links):
        undisturbed, _ = await read(cluster.start(PROMPT, **params))
        total = sum(map(len, undisturbed.tokens.values()))
        for cut in range(total + 1):
            links.after, links.done = [cut], 0
            answer, completion = await read(cluster.start(PROMPT, **params))
            assert answer == undisturbed, f"cut after {cut} tokens"
            assert completion.moves <= links.done
            if cut < total:
                assert completion.moves == 1, f"cut after {cut} tokens"


async def test_stop_string_across_the_border(monkeypatch: pytest.MonkeyPatch):
    """A stop string whose characters come from two workers ends the text where it would have, at every cut."""
    params = {"max_tokens": LENGTH, "temperature": 1.0, "seed": 5}
    async with cut_cluster(monkeypatch) as (cluster, links):
        whole, _ = await read(cluster.start(PROMPT, **params))
        start = next(place for place in range(2, len(whole.text[0])) if whole.text[0][place:].isascii())
        params["stop"] = [whole.text[0][start : start + 4]]
        undisturbed, _ = await read(cluster.start(PROMPT, **params))
        assert undisturbed.ends[0][1] == params["stop"][0]
        assert 0 < len(undisturbed.text[0]) < len(whole.text[0])
        for cut in range(len(undisturbed.tokens[0])):
            links.after = [cut]
            answer, _ = await read(cluster.start(PROMPT, **params))
            assert answer == undisturbed, f"cut after {cut} tokens"


@pytest.mark.parametrize("seed", range(8))
async def test_moves_during_moves(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Several cuts in a row, also before a moved request has given a single token, leave one right stream."""
    rng = random.Random(seed)
    async with cut_cluster(monkeypatch) as (cluster, links):
        for kind in rng.sample(sorted(SAMPLINGS), 3):
            params = {"max_tokens": LENGTH, **SAMPLINGS[kind]}
            undisturbed, _ = await read(cluster.start(PROMPT, **params))
            links.after = [rng.choice([0, 0, 1, 2, 3, 5]) for _ in range(rng.randint(2, 6))]
            links.done = 0
            answer, completion = await read(cluster.start(PROMPT, **params))
            assert answer == undisturbed, (kind, seed)
            assert completion.moves <= links.done
            links.after = []


async def test_cached_tokens_are_those_of_the_first_run(monkeypatch: pytest.MonkeyPatch):
    """Computing prompt and output again elsewhere does not change how much of the prompt counts as cached."""
    links = CutLinks().install(monkeypatch)
    spare = TierServer(Tier.DECODE, FakeEngine(LIMITS))
    async with running(spare), split_cluster(LIMITS, more=(spare,)) as cluster:
        await read(cluster.start(PROMPT, max_tokens=LENGTH))
        undisturbed, _ = await read(cluster.start(PROMPT, max_tokens=LENGTH))
        assert undisturbed.usage[2] > 0
        for cut in (1, 5, 9):
            links.after = [cut]
            answer, completion = await read(cluster.start(PROMPT, max_tokens=LENGTH))
            assert completion.moves == 1
            assert answer.usage == undisturbed.usage


REAL_SAMPLINGS: dict[str, dict[str, Any]] = {
    "penalties": {
        "temperature": 1.0, "seed": 7, "n": 2, "repetition_penalty": 1.2, "presence_penalty": 0.4,
        "frequency_penalty": 0.3, "top_p": 0.95, "top_k": 40, "logprobs": 2,
    },
    "greedy after a minimum": {"temperature": 0.0, "min_tokens": 8, "logprobs": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", REAL_SAMPLINGS)
async def test_real_model_goes_on_token_exact(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Penalties, filters, seeds and minimum lengths of a real model survive a move, and logprobs to rounding."""
    links = CutLinks().install(monkeypatch)
    params = {"max_tokens": LENGTH, **REAL_SAMPLINGS[kind]}
    prompt = random_prompt(45, seed=8)
    engines = [_real_engine(name) for name in ("prefill", "decode", "spare")]
    spare = TierServer(Tier.DECODE, engines[2])
    frontend = {"model": str(tiny_checkpoint("llama"))}
    async with (
        running(spare),
        split_cluster(more=(spare,), frontend=frontend, engines=(engines[0], engines[1])) as cluster,
    ):
        undisturbed = await _logprobs(cluster.start(prompt, **params))
        for cut in (0, 1, 4, 9):
            links.after, links.done = [cut], 0
            answer = await _logprobs(cluster.start(prompt, **params))
            assert links.done == 1
            assert answer.keys() == undisturbed.keys()
            for choice, tokens in answer.items():
                assert [token.id for token in tokens] == [token.id for token in undisturbed[choice]], cut
                for token, other in zip(tokens, undisturbed[choice], strict=True):
                    assert token.HasField("logprob")
                    assert token.logprob == pytest.approx(other.logprob, abs=1e-4)


@functools.cache
def _real_engine(name: str) -> Engine:
    """An engine of its own for each name."""
    config = EngineConfig(
        checkpoint=tiny_checkpoint("llama"), dtype="float32", block_size=16, num_blocks=96, max_model_len=160,
        max_num_seqs=8, max_num_batched_tokens=48, num_threads=1,
    )  # fmt: skip
    return load_engine(config)


async def _logprobs(call: Any) -> dict[int, list[Any]]:
    tokens: dict[int, list[Any]] = {}
    async for message in call:
        for delta in message.deltas:
            tokens.setdefault(delta.choice_index, []).extend(delta.tokens)
    return tokens
