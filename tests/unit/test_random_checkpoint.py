"""Checkpoints of random weights: loadable, equal each time, and of the size that their name says."""

import math
import pathlib

import torch
from safetensors import safe_open

from benchmarks.random_checkpoint import SHAPES, main, make_checkpoint, part_shapes
from benchmarks.weights import count_weights
from services.engine.batch import BatchItem
from services.engine.config import EngineConfig
from services.engine.engine import load_engine
from tests.harness.engine_driver import EngineDriver

TINY = SHAPES["tiny"]


def test_the_8b_shape_is_that_of_llama_3() -> None:
    """8.03 billion weights, and no file above 1.1 GB of them, which is what making it takes of memory."""
    counts = [sum(map(math.prod, tensors.values())) for _, tensors in part_shapes(SHAPES["8b"])]
    assert sum(counts) == 8_030_261_248
    assert max(counts) * torch.bfloat16.itemsize < 1.1e9


def test_the_engine_serves_it(tmp_path: pathlib.Path) -> None:
    """Every weight has its name and shape, and the logits are numbers."""
    make_checkpoint(TINY, tmp_path)
    engine = load_engine(EngineConfig(checkpoint=tmp_path, device="cpu", dtype="float32", num_blocks=600))
    driver = EngineDriver(engine)
    (found,) = driver.run([driver.request([5, 6, 7], max_tokens=4)])
    assert len(found) == 4
    assert engine.layout.num_kv_heads == TINY.num_key_value_heads
    assert count_weights(tmp_path, TINY.vocab_size).head == TINY.vocab_size * TINY.hidden_size
    assert engine.step([BatchItem(token_ids=[3], start=0, block_ids=[0])])[0].error is None


def test_it_is_made_once_and_always_the_same(tmp_path: pathlib.Path) -> None:
    """A second call changes no file; one without its index, as an interrupted call leaves it, is made anew."""
    make_checkpoint(TINY, tmp_path)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    make_checkpoint(TINY, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == first
    before = head_of(tmp_path)
    (tmp_path / "model-head.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors.index.json").unlink()
    make_checkpoint(TINY, tmp_path)
    assert torch.equal(head_of(tmp_path), before)


def head_of(folder: pathlib.Path) -> torch.Tensor:
    with safe_open(folder / "model-head.safetensors", "pt") as file:
        return file.get_tensor("lm_head.weight").clone()  # else it is the file itself, which is written over


def test_an_unknown_shape_is_refused(tmp_path: pathlib.Path) -> None:
    """With the shapes that there are; nothing is made."""
    assert main(["70b", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())
