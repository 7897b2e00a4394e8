"""Models divided between ranks: tokens as transformers' generate gives them, and KV that fits every other worker."""

import asyncio
import gc

import psutil
import pytest
import torch

from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.engine.config import EngineConfig
from services.engine.engine import Engine, load_engine
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.engine_driver import EngineDriver
from tests.harness.rank_threads import sharded_engine
from tests.harness.tiers import TierServer, at_rest, both_legs, ids, running, work

LENGTHS = (1, 7, 16, 33, 64, 90)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"])
def test_two_ranks_give_transformers_tokens(architecture: str) -> None:
    """Prompts in chunks, mixed with decodes: each family's tokens as generate gives them."""
    prompts = [random_prompt(length) for length in LENGTHS]
    with sharded_engine(architecture) as engine:
        driver = EngineDriver(engine)
        outputs = driver.run([driver.request(prompt, max_tokens=10, chunk=19) for prompt in prompts])
    assert outputs == [reference_tokens(tiny_checkpoint(architecture), prompt, 10) for prompt in prompts]


@pytest.mark.parametrize("overrides", [{"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_variants_of_a_family_are_divided_too(overrides: dict[str, bool]) -> None:
    """Embeddings that are the output layer as well; biases behind sums, which must count once."""
    prompt = random_prompt(40)
    with sharded_engine("llama", **overrides) as engine:
        driver = EngineDriver(engine)
        outputs = driver.run([driver.request(prompt)])
    assert outputs == [reference_tokens(tiny_checkpoint("llama", **overrides), prompt, 8)]


def test_three_ranks_divide_what_two_cannot() -> None:
    """Three KV heads between three ranks, and a vocabulary that does not divide evenly."""
    overrides = {"num_key_value_heads": 3}
    prompt = random_prompt(40)
    with sharded_engine("llama", 3, **overrides) as engine:
        driver = EngineDriver(engine)
        outputs = driver.run([driver.request(prompt)])
    assert outputs == [reference_tokens(tiny_checkpoint("llama", **overrides), prompt, 8)]


def test_bfloat16_is_as_with_one_rank_up_to_rounding() -> None:
    """Through whatever this machine computes it with, fused and packed: a sum left out would change everything."""
    prompts = [random_prompt(length) for length in LENGTHS]
    sampling = SamplingParams(temperature=0.0, logprobs=1)

    def first_logprobs(engine: Engine) -> torch.Tensor:
        driver = EngineDriver(engine)
        requests = [driver.request(prompt, max_tokens=1, sampling=sampling) for prompt in prompts]
        driver.run(requests)
        return torch.tensor([request.tokens[0].logprob for request in requests])

    config = EngineConfig(
        checkpoint=tiny_checkpoint("llama"), dtype="bfloat16", device="cpu", num_blocks=64, max_model_len=160
    )
    one = first_logprobs(load_engine(config))
    with sharded_engine("llama", dtype="bfloat16") as engine:
        assert torch.allclose(first_logprobs(engine), one, rtol=0, atol=0.25)


@pytest.mark.parametrize(("prefill_ranks", "decode_ranks"), [(2, 1), (1, 2), (2, 2)])
async def test_kv_fits_whatever_the_degrees(prefill_ranks: int, decode_ranks: int) -> None:
    """A prompt's KV is handed over between tiers of unlike degrees, over the network, and the tokens are right."""
    prompts = [random_prompt(length, seed=9) for length in LENGTHS]
    sampling = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    with sharded_engine("llama", prefill_ranks) as one, sharded_engine("llama", decode_ranks) as other:
        prefill, decode = TierServer(Tier.PREFILL, one), TierServer(Tier.DECODE, other)
        async with running(prefill, decode):
            results = await asyncio.gather(
                *(both_legs(prefill, decode, work(prompt, sampling), f"t{i}") for i, prompt in enumerate(prompts))
            )
            await at_rest(prefill, decode)
    for prompt, (_, tokens, last) in zip(prompts, results, strict=True):
        assert ids(tokens[0]) == reference_tokens(tiny_checkpoint("llama"), prompt, 10)
        assert last.summary.prefilled_tokens == 0


@pytest.mark.slow
def test_ranks_are_processes_and_end_with_their_engine() -> None:
    """Loaded as a worker loads it: right tokens, and neither a process nor a descriptor left."""
    before = psutil.Process().num_fds()
    config = EngineConfig(
        checkpoint=tiny_checkpoint("llama"),
        dtype="float32",
        device="cpu",
        num_blocks=64,
        max_model_len=160,
        num_threads=2,
        tensor_parallel=2,
        rank_timeout_s=60.0,
    )
    engine = load_engine(config)
    try:
        driver, prompt = EngineDriver(engine), random_prompt(90)
        assert driver.run([driver.request(prompt, chunk=40)]) == [reference_tokens(config.checkpoint, prompt, 8)]
        assert engine.stats()["rank_processes"] == 1
    finally:
        engine.close()
    assert engine.stats()["rank_processes"] == 0
    del engine, driver
    gc.collect()
    assert psutil.Process().num_fds() <= before
