"""Decode really uses the KV that was handed over: zeroing it in flight changes the tokens, or is found out."""

from pathlib import Path

import pytest

from services.common.errors import KvCorrupt
from services.common.sampling import SamplingParams
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.processes import PATIENT_WORKER, processes

COUNTS = {"prefill": 1, "decode": 1}
ZEROING = {"prefill": "tests.harness.zeroing_prefill"}
PROMPT = random_prompt(60, seed=3)
SAMPLING = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


async def test_zeroed_kv_changes_the_tokens_without_checksum(tmp_path: Path):
    """With checksums off, zeros on the channel become other tokens: decode did not prefill by itself."""
    checkpoint = tiny_checkpoint("llama")
    flags = {tier: {"no-kv-checksum": "", **PATIENT_WORKER} for tier in ("prefill", "decode")}
    async with processes(checkpoint, tmp_path, COUNTS, flags, ZEROING) as cluster:
        answer = await cluster.ask(PROMPT, SAMPLING)
        loads = await cluster.workers_at_rest()
    expected = reference_tokens(checkpoint, PROMPT, 12)
    assert answer.tokens[0][0] == expected[0]
    assert answer.tokens[0][1:] != expected[1:]
    assert loads["decode-0"].counters["prefilled_tokens"] == 0


async def test_zeroed_kv_is_a_typed_error_with_checksum(tmp_path: Path):
    """With checksums on, as by default, zeros on the channel end the request with DATA_LOSS and nothing is left."""
    flags = {"frontend": {"max-moves": "0"}}
    async with processes(tiny_checkpoint("llama"), tmp_path, COUNTS, flags, ZEROING) as cluster:
        before = await cluster.load("decode-0")
        with pytest.raises(KvCorrupt):
            await cluster.ask(PROMPT, SAMPLING)
        loads = await cluster.workers_at_rest()
    sampled = (load.counters["engine_sampled_tokens"] for load in (before, loads["decode-0"]))
    assert len(set(sampled)) == 1


async def test_request_with_zeroed_kv_goes_on_without_the_handoff(tmp_path: Path):
    """Where requests may move, corrupt KV costs time alone: decode computes the prompt itself, and says so."""
    checkpoint = tiny_checkpoint("llama")
    async with processes(checkpoint, tmp_path, COUNTS, {}, ZEROING) as cluster:
        answer = await cluster.ask(PROMPT, SAMPLING)
        await cluster.workers_at_rest()
    assert answer.tokens[0] == reference_tokens(checkpoint, PROMPT, 12)
    assert answer.completion.moves > 0
