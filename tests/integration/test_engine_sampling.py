"""Sampled requests over a real engine: streams that no batching changes, several choices, and items that fail alone."""

import pytest

from services.common.errors import Internal
from services.common.sampling import SamplingParams
from services.engine.batch import BatchItem, SampleSpec
from services.engine.config import EngineConfig
from services.engine.engine import load_engine
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.engine_driver import GREEDY, DriverRequest, EngineDriver

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=77, frequency_penalty=0.4)


def make_driver(block_size: int = 16) -> EngineDriver:
    config = EngineConfig(
        checkpoint=tiny_checkpoint(),
        dtype="float32",
        device="cpu",
        block_size=block_size,
        num_blocks=400,
        num_threads=1,
    )
    return EngineDriver(load_engine(config))


@pytest.fixture(scope="module")
def alone() -> list[int]:
    """What the sampled request says when it has the engine to itself."""
    driver = make_driver()
    return driver.run([driver.request(random_prompt(50), sampling=SAMPLED, max_tokens=16)])[0]


@pytest.mark.parametrize("chunk", [7, 16, 49])
@pytest.mark.parametrize("block_size", [8, 32])
def test_seeded_output_depends_on_no_batching(alone: list[int], block_size: int, chunk: int) -> None:
    """Other chunks, other blocks, other batch mates: the same seed says the same tokens."""
    driver = make_driver(block_size)
    mates = [driver.request(random_prompt(length), sampling=SAMPLED, max_tokens=9) for length in (5, 90)]
    request = driver.request(random_prompt(50), sampling=SAMPLED, max_tokens=16, chunk=chunk)
    assert driver.run([mates[0], request, mates[1]])[1] == alone


def test_another_seed_says_something_else(alone: list[int]) -> None:
    """The seed is used."""
    driver = make_driver()
    other = SamplingParams(temperature=0.9, top_p=0.95, seed=78, frequency_penalty=0.4)
    assert driver.run([driver.request(random_prompt(50), sampling=other, max_tokens=16)])[0] != alone


def test_a_stream_moves_between_engines(alone: list[int]) -> None:
    """A request that is computed again on another engine after 6 tokens goes on as if nothing had happened."""
    first, second = make_driver(), make_driver(8)
    moved = first.request(random_prompt(50), sampling=SAMPLED, max_tokens=6)
    first.run([moved])
    again = second.request(random_prompt(50), sampling=SAMPLED, max_tokens=16)
    again.tokens = list(moved.tokens)
    assert second.run([again])[0] == alone


def test_four_choices_share_one_prompt() -> None:
    """One prefill samples four first tokens; each choice goes on in a copy of the last block, as if it were alone."""
    driver, prompt = make_driver(), random_prompt(41)
    params = SamplingParams(temperature=1.3, seed=5, n=4)
    alone = [
        driver.run([driver.request(prompt, sampling=params, choice=choice, max_tokens=9)])[0] for choice in range(4)
    ]
    blocks = driver.take_blocks(len(prompt))
    specs = tuple(SampleSpec(sampling=params, choice=choice, index=0) for choice in range(4))
    (result,) = driver.engine.step([BatchItem(token_ids=prompt, start=0, block_ids=blocks, samples=specs)])
    requests: list[DriverRequest] = []
    for choice, token in enumerate(result.tokens):
        request = driver.request(prompt, sampling=params, choice=choice, max_tokens=9)
        request.blocks[:2] = blocks[:2]
        driver.engine.copy_blocks([(blocks[2], request.blocks[2])])
        request.tokens, request.computed = [token], len(prompt)
        requests.append(request)
    assert driver.run(requests) == alone
    assert len({tuple(output) for output in alone}) == 4


def test_broken_kv_fails_its_request_alone() -> None:
    """NaN in one request's KV ends that request alone, with an error, and its blocks are usable again."""
    driver = make_driver()
    prompts = [random_prompt(length) for length in (30, 31, 32)]
    requests = [driver.request(prompt, max_tokens=10) for prompt in prompts]
    driver.step(requests)
    driver.engine.kv.tensor[1, :, :, requests[1].blocks[0], 3] = float("nan")
    results = driver.step(requests)
    assert isinstance(results[1].error, Internal)
    assert driver.engine.stats()["failed_items"] == 1
    heir = driver.request(random_prompt(18, seed=1), max_tokens=10)
    heir.blocks = requests[1].blocks
    outputs = driver.run([requests[0], heir, requests[2]])
    wanted = [reference_tokens(tiny_checkpoint(), request.prompt, 10) for request in (requests[0], heir, requests[2])]
    assert outputs == wanted


def test_min_tokens_masks_the_stop_ids() -> None:
    """A stop token that would come first does not, as long as it is not allowed."""
    driver, prompt = make_driver(), random_prompt(12)
    (first,) = driver.run([driver.request(prompt, max_tokens=1)])[0]
    spec = SampleSpec(sampling=GREEDY, choice=0, index=0, stop_ids=(first,), is_stop_allowed=False)
    (result,) = driver.engine.step(
        [BatchItem(token_ids=prompt, start=0, block_ids=driver.take_blocks(12), samples=(spec,))]
    )
    assert result.tokens[0].id != first


def test_results_come_in_the_order_of_the_items_and_are_counted() -> None:
    """Items of every kind in one step: chunk without samples, decode, whole prompt, two samples."""
    driver = make_driver()
    running = driver.request(random_prompt(20), max_tokens=2)
    driver.step([running])
    before = driver.engine.stats()
    spec = running.spec()
    items = [
        BatchItem(token_ids=random_prompt(9), start=0, block_ids=driver.take_blocks(9)),
        running.item(),
        BatchItem(token_ids=random_prompt(8), start=0, block_ids=driver.take_blocks(8), samples=(spec, spec)),
    ]
    assert [len(result.tokens) for result in driver.engine.step(items)] == [0, 1, 2]
    after = driver.engine.stats()
    grown = {name: after[name] - before[name] for name in ("steps", "fed_tokens", "sampled_tokens", "failed_items")}
    assert grown == {"steps": 1, "fed_tokens": 18, "sampled_tokens": 3, "failed_items": 0}
    assert driver.engine.step([]) == []
