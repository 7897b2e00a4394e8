"""In float32 the engine says token for token what transformers' own `generate` says, for every family and batch."""

import pytest

from services.engine.config import EngineConfig
from services.engine.engine import Engine, load_engine
from tests.harness.checkpoints import ARCHITECTURES, random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.engine_driver import EngineDriver

# The sliding windows of the tiny checkpoints are 24: shorter than most of these prompts.
LENGTHS = (1, 2, 15, 16, 17, 60, 133, 300)
FURTHER = (
    "gpt2",
    "opt",
    "gemma",
    "mixtral",
    "qwen3_moe",
    "olmo2",
    "starcoder2",
    "stablelm",
    "cohere2",
    "granite",
    "phi",
)


def make_engine(architecture: str = "llama", block_size: int = 16, num_blocks: int = 400) -> Engine:
    """A float32 engine over a tiny checkpoint, on one thread."""
    config = EngineConfig(
        checkpoint=tiny_checkpoint(architecture),
        dtype="float32",
        device="cpu",
        block_size=block_size,
        num_blocks=num_blocks,
        num_threads=1,
    )
    return load_engine(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_families_in_one_mixed_batch(architecture: str) -> None:
    """Prompts of many lengths in one batch, each as if alone; outputs differ, so the test can fail."""
    driver = EngineDriver(make_engine(architecture))
    prompts = [random_prompt(length) for length in LENGTHS]
    outputs = driver.run([driver.request(prompt, max_tokens=12) for prompt in prompts])
    assert outputs == [reference_tokens(tiny_checkpoint(architecture), prompt, 12) for prompt in prompts]
    assert len({tuple(output) for output in outputs}) == len(prompts)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FURTHER)
def test_further_families(architecture: str) -> None:
    """Families that nothing was written for: learned positions, experts, parallel blocks, scaled residuals."""
    driver = EngineDriver(make_engine(architecture))
    prompts = [random_prompt(length) for length in LENGTHS]
    outputs = driver.run([driver.request(prompt, max_tokens=8) for prompt in prompts])
    assert outputs == [reference_tokens(tiny_checkpoint(architecture), prompt, 8) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_long_prompt(architecture: str) -> None:
    """2,000 tokens in chunks beside a short request that decodes meanwhile."""
    driver = EngineDriver(make_engine(architecture))
    long, short = random_prompt(2000), random_prompt(9)
    requests = [driver.request(long, max_tokens=6, chunk=700), driver.request(short, max_tokens=6)]
    path = tiny_checkpoint(architecture)
    assert driver.run(requests) == [reference_tokens(path, long, 6), reference_tokens(path, short, 6)]


@pytest.mark.parametrize("block_size", [1, 8, 16, 32])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_block_sizes(architecture: str, block_size: int) -> None:
    """The block size changes nothing."""
    driver = EngineDriver(make_engine(architecture, block_size, num_blocks=2304 if block_size == 1 else 400))
    prompts = [random_prompt(length) for length in (7, 33, 64, 90)]
    outputs = driver.run([driver.request(prompt, max_tokens=10) for prompt in prompts])
    assert outputs == [reference_tokens(tiny_checkpoint(architecture), prompt, 10) for prompt in prompts]


@pytest.mark.parametrize("chunk", [1, 3, 16, 17, 50, 64, 99, 100])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_chunk_sizes(architecture: str, chunk: int) -> None:
    """However a prompt is cut into chunks, even of one token, its output is the same."""
    driver = EngineDriver(make_engine(architecture))
    prompt = random_prompt(100)
    assert driver.run([driver.request(prompt, chunk=chunk)]) == [
        reference_tokens(tiny_checkpoint(architecture), prompt, 8)
    ]


def test_prefills_join_a_running_decode() -> None:
    """Requests that arrive while others decode, in steps that mix both, disturb nobody."""
    driver = EngineDriver(make_engine())
    prompts = [random_prompt(length) for length in (20, 45, 80, 5)]
    requests = [driver.request(prompt, max_tokens=12, chunk=19) for prompt in prompts]
    for count in range(1, len(requests)):
        driver.step(requests[:count])
    assert driver.run(requests) == [reference_tokens(tiny_checkpoint(), prompt, 12) for prompt in prompts]


def test_prefix_blocks_are_reused() -> None:
    """A second request that starts behind the first one's full blocks, in its own order of blocks, says the same."""
    driver = EngineDriver(make_engine())
    shared = random_prompt(64)
    first = driver.request(shared + random_prompt(9, seed=1))
    driver.run([first])
    second_prompt = shared + random_prompt(21, seed=2)
    second = driver.request(second_prompt)
    second.blocks[:4], second.computed = first.blocks[:4], 64
    before = driver.engine.stats()["fed_tokens"]
    assert driver.run([second]) == [reference_tokens(tiny_checkpoint(), second_prompt, 8)]
    assert driver.engine.stats()["fed_tokens"] - before == 21 + 7


def test_reused_blocks_carry_nothing_over() -> None:
    """A request in blocks that another has used, with longer content, sees none of it."""
    driver = EngineDriver(make_engine())
    first = driver.request(random_prompt(120))
    driver.run([first])
    prompt = random_prompt(50, seed=3)
    second = driver.request(prompt)
    second.blocks = first.blocks
    assert driver.run([second]) == [reference_tokens(tiny_checkpoint(), prompt, 8)]


def test_copied_blocks_hold_the_same_kv() -> None:
    """A request continued on copies of its blocks says the same, though the originals are overwritten."""
    driver = EngineDriver(make_engine())
    prompt = random_prompt(70)
    first = driver.request(prompt, max_tokens=3)
    driver.run([first])
    copies = driver.take_blocks(90)
    driver.engine.copy_blocks(list(zip(first.blocks, copies, strict=False)))
    spoiler = driver.request(random_prompt(70, seed=4))
    spoiler.blocks = first.blocks
    driver.run([spoiler])
    first.blocks, first.max_tokens = copies, 10
    assert driver.run([first]) == [reference_tokens(tiny_checkpoint(), prompt, 10)]
