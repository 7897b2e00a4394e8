"""KV that leaves one engine and enters another continues the request as if it had never moved."""

import pytest
import torch

from services.engine.batch import BatchItem
from services.engine.config import EngineConfig
from services.engine.engine import Engine, load_engine
from services.engine.runner import Runner
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.engine_driver import DriverRequest, EngineDriver


def make_driver(block_size: int, dtype: str = "float32", architecture: str = "llama") -> EngineDriver:
    """A driver over an engine of its own."""
    config = EngineConfig(
        checkpoint=tiny_checkpoint(architecture),
        dtype=dtype,
        device="cpu",
        block_size=block_size,
        num_blocks=2400 // block_size,
        num_threads=1,
    )
    return EngineDriver(load_engine(config))


def move(engine: Engine, source: DriverRequest, target_engine: Engine, target: DriverRequest, cuts: list[int]) -> None:
    """Moves all computed KV, in ranges that end at `cuts`."""
    layout = engine.layout
    for start, end in zip([0, *cuts], [*cuts, source.computed], strict=True):
        shape = (layout.num_layers, 2, layout.num_kv_heads, end - start, layout.head_dim)
        message = torch.empty(shape, dtype=getattr(torch, layout.dtype))
        engine.kv.read(source.blocks, start, end, message)
        target_engine.kv.write(target.blocks, start, end, message)
    target.computed, target.tokens = source.computed, list(source.tokens)


@pytest.mark.parametrize(("source_size", "sink_size"), [(16, 16), (8, 32), (32, 8), (16, 5)])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_handoff_between_block_sizes(source_size: int, sink_size: int, architecture: str) -> None:
    """Prefill on one engine, decode on another with other blocks: the right tokens, and no token fed twice."""
    source, sink = (
        make_driver(source_size, architecture=architecture),
        make_driver(sink_size, architecture=architecture),
    )
    prompt = random_prompt(77)
    first = source.request(prompt, max_tokens=1)
    source.run([first])
    second = sink.request(prompt, max_tokens=12)
    move(source.engine, first, sink.engine, second, cuts=[16, 40, 48])
    assert sink.run([second]) == [reference_tokens(tiny_checkpoint(architecture), prompt, 12)]
    assert sink.engine.stats()["fed_tokens"] == 11


def test_zeroed_kv_changes_the_tokens() -> None:
    """The negative control: decode really reads what was moved."""
    source, sink = make_driver(16), make_driver(16)
    prompt = random_prompt(77)
    first = source.request(prompt, max_tokens=1)
    source.run([first])
    source.engine.kv.tensor.zero_()
    second = sink.request(prompt, max_tokens=12)
    move(source.engine, first, sink.engine, second, cuts=[])
    assert sink.run([second]) != [reference_tokens(tiny_checkpoint(), prompt, 12)]


def test_bfloat16_kv_continues_exactly_in_float32() -> None:
    """bfloat16 widens to float32 without loss, so both engines hold equal KV after the move and back."""
    source, sink = make_driver(16, "bfloat16"), make_driver(8, "float32")
    prompt = random_prompt(50)
    first = source.request(prompt, max_tokens=1)
    source.run([first])
    second = sink.request(prompt, max_tokens=1)
    move(source.engine, first, sink.engine, second, cuts=[33])
    back = source.request(prompt, max_tokens=1)
    move(sink.engine, second, source.engine, back, cuts=[10])
    layout = source.engine.layout
    shape = (layout.num_layers, 2, layout.num_kv_heads, 50, layout.head_dim)
    before, after = torch.empty(shape, dtype=torch.bfloat16), torch.empty(shape, dtype=torch.bfloat16)
    source.engine.kv.read(first.blocks, 0, 50, before)
    source.engine.kv.read(back.blocks, 0, 50, after)
    assert torch.equal(before, after)
    assert int(before.count_nonzero()) > before.numel() * 0.9


def test_copies_are_told_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a step is marked for copies on a device, also where the step fails, and so is a copy of blocks."""
    engine = make_driver(16).engine
    marks: list[str] = []
    monkeypatch.setattr(engine.kv, "mark", lambda: marks.append("mark"))
    item = BatchItem(token_ids=[5, 6], start=0, block_ids=[0])
    engine.step([item])
    assert len(marks) == 1
    engine.copy_blocks([(0, 1)])
    assert len(marks) == 2
    monkeypatch.setattr(Runner, "compute", lambda *_: {}["a kernel raised"])
    with pytest.raises(KeyError):
        engine.step([item])
    assert len(marks) == 3
