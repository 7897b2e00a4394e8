"""Prefill and decode in processes of their own give what one worker gives, and what transformers gives."""

import asyncio
import random
from pathlib import Path

import pytest

from services.common.sampling import SamplingParams
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.processes import PATIENT, PATIENT_WORKER, Answer, Processes, processes

AT_ONCE = 16
REQUESTS = 200


def mixed_requests(count: int) -> list[tuple[list[int], SamplingParams]]:
    """Greedy and seeded requests of mixed lengths, penalties and choices; a third of them share a prefix."""
    rng = random.Random(7)
    shared = random_prompt(96, seed=1)
    requests = []
    for i in range(count):
        prompt = random_prompt(rng.choice((1, 3, 17, 33, 64, 130)), seed=100 + i)
        if i % 3 == 0:
            prompt = shared[: rng.choice((32, 64, 96))] + prompt
        sampling = SamplingParams(
            temperature=0.0 if i % 2 else rng.choice((0.7, 1.0)),
            top_p=rng.choice((0.9, 1.0)),
            top_k=rng.choice((0, 20)),
            repetition_penalty=rng.choice((1.0, 1.2)),
            seed=i,
            max_tokens=rng.randint(1, 24),
            n=4 if i % 10 == 0 else 1,
            ignore_eos=i % 4 == 0,
        )
        requests.append((prompt, sampling))
    return requests


async def answers(cluster: Processes, requests: list[tuple[list[int], SamplingParams]]) -> list[Answer]:
    """Runs all requests, `AT_ONCE` at a time."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(prompt: list[int], sampling: SamplingParams) -> Answer:
        async with gate:
            return await cluster.ask(prompt, sampling)

    return await asyncio.gather(*(one(*request) for request in requests))


@pytest.mark.timeout(300)
async def test_split_equals_colocated_and_transformers(tmp_path: Path):
    """200 mixed requests, 16 at a time: split and colocated agree token for token, and with transformers."""
    checkpoint = tiny_checkpoint("llama")
    requests = mixed_requests(REQUESTS)
    split_flags = {
        "prefill": {"block-size": "16", "max-num-batched-tokens": "96", **PATIENT_WORKER},
        "decode": {"block-size": "8", **PATIENT_WORKER},
        "frontend": PATIENT,
    }
    async with processes(checkpoint, tmp_path / "split", {"prefill": 1, "decode": 1}, split_flags) as cluster:
        split = await answers(cluster, requests)
        loads = await cluster.workers_at_rest()
    async with processes(checkpoint, tmp_path / "one", {"colocated": 1}, {"frontend": PATIENT}) as cluster:
        colocated = await answers(cluster, requests)
        await cluster.workers_at_rest()
    for one, other, (prompt, sampling) in zip(split, colocated, requests, strict=True):
        assert one.tokens == other.tokens, f"prompt of {len(prompt)} tokens, {sampling}"
        assert one.text == other.text
    assert not any(answer.completion.colocated for answer in split)
    assert all(answer.completion.colocated for answer in colocated)
    assert loads["decode-0"].counters["prefilled_tokens"] == 0
    plain = [i for i, (_, s) in enumerate(requests) if s.is_greedy and s.ignore_eos and s.repetition_penalty == 1.0]
    for i in plain[:12]:
        prompt, sampling = requests[i]
        assert split[i].tokens[0] == reference_tokens(checkpoint, prompt, sampling.max_tokens)
