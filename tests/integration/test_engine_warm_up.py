"""The speed of an engine, as it measures it itself."""

from pathlib import Path

from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.engine.config import EngineConfig
from services.engine.engine import Engine, load_engine
from services.engine.warm_up import warm_up
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.tiers import TierServer, both_legs, collect, ids, running, work


def engine(checkpoint: Path) -> Engine:
    """A small engine, loaded anew."""
    limits = {"num_blocks": 32, "max_model_len": 128, "max_num_batched_tokens": 64}
    return load_engine(EngineConfig(checkpoint=checkpoint, dtype="float32", num_threads=1, **limits))


def test_warm_up_measures_every_size_that_a_step_can_feed() -> None:
    """Sizes up to the token budget are known afterwards; a model for which the time is up at once knows the first."""
    checkpoint = tiny_checkpoint("llama")
    whole, hasty = engine(checkpoint), engine(checkpoint)
    warm_up(whole, budget_s=60.0)
    warm_up(hasty, budget_s=0.0)
    assert [point.tokens for point in whole.step_times.points] == [1, 4, 16, 64]
    assert [point.tokens for point in hasty.step_times.points] == [1]
    assert all(point.time_ns > 0 for point in whole.step_times.points)


async def test_a_warmed_up_engine_gives_the_same_tokens() -> None:
    """What the warm-up left in the blocks is in nobody's way, and the load report says how fast the steps are."""
    warm = engine(tiny_checkpoint("llama"))
    warm_up(warm, budget_s=60.0)
    server = TierServer(Tier.COLOCATED, warm)
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    prompt = random_prompt(40)
    async with running(server):
        tokens, _ = await collect(server.decode.decode(work(prompt, sampling)))
        assert ids(tokens[0]) == reference_tokens(tiny_checkpoint("llama"), prompt, 8)
        assert server.tier.load().step_times == warm.step_times.points != ()


async def test_handoffs_are_timed_by_what_is_fetched() -> None:
    """A decode worker reports what handoffs took, by the tokens that were not cached, once it knows enough of them."""
    prefill, decode = TierServer(Tier.PREFILL), TierServer(Tier.DECODE)
    async with running(prefill, decode):
        for number in range(3):
            assert decode.tier.load().handoff_times == ()
            await both_legs(prefill, decode, work(range(number, number + 21)), f"t-{number}")
        (point,) = decode.tier.load().handoff_times
        assert point.tokens == 21
        assert point.time_ns > 0
