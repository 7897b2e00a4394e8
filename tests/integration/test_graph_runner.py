"""The runner of captured decode steps without CUDA: what is captured here is computed anew at each replay.

So everything but the capture itself is tried: the inputs that it reads, its padding, and which steps it takes.
"""

import random
from dataclasses import dataclass

import pytest
import torch

from services.common.config import ConfigError
from services.engine.attention.gather import GatherAttention
from services.engine.batch import BatchItem
from services.engine.config import EngineConfig
from services.engine.cuda_graph import Compute
from services.engine.decode_buckets import RowShape
from services.engine.decode_buffers import DecodeBuffers
from services.engine.engine import load_engine
from services.engine.graph_runner import GraphRunner
from services.engine.load import load_model
from services.engine.packing import pack_step
from services.engine.runner import Runner
from tests.harness.checkpoints import tiny_checkpoint
from tests.harness.tensor_attention import TensorAttention

BLOCK, BLOCKS, WIDTH = 8, 40, 5
SIZES = (1, 2, 4, 8)
Item = tuple[int, int]


@dataclass
class Case:
    """A runner of replayed steps and an eager one, each with KV of its own that is equal at first."""

    graphs: GraphRunner
    eager: Runner
    kv: torch.Tensor
    eager_kv: torch.Tensor
    captured: list[Compute]

    def step(self, sizes: list[Item]) -> None:
        """Feeds requests of (history, fed) tokens to both and compares their logits, and the KV that they leave."""
        rng = random.Random(repr(sizes))
        blocks = rng.sample(range(BLOCKS), BLOCKS)
        items = []
        for history, fed in sizes:
            table = [blocks.pop() for _ in range(-(-(history + fed) // BLOCK))]
            tokens = [rng.randrange(3, 250) for _ in range(fed)]
            items.append(BatchItem(token_ids=tokens, start=history, block_ids=table))
        packed = pack_step(items, BLOCK, torch.device("cpu"))
        with torch.inference_mode():
            torch.testing.assert_close(self.graphs.forward(packed), self.eager.forward(packed), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(self.kv[:, :, :, :BLOCKS], self.eager_kv, rtol=1e-4, atol=1e-4)


def make_case() -> Case:
    path = tiny_checkpoint("mistral")  # a sliding window
    loaded = load_model(EngineConfig(checkpoint=path, device="cpu", native_kernels=False), lambda line: None)
    shape = loaded.shape
    torch.manual_seed(0)
    kv = torch.randn(shape.num_layers, 2, shape.num_kv_heads, BLOCKS + 1, BLOCK, shape.head_dim)
    eager_kv = kv[:, :, :, :BLOCKS].contiguous()
    attention = TensorAttention(kv)
    rows = RowShape(BLOCK, WIDTH, BLOCKS)
    buffers = [DecodeBuffers(size, rows, BLOCK * WIDTH, kv.device) for size in SIZES]
    graphs = GraphRunner(Runner(loaded.forward, loaded.slot, attention), buffers, attention)
    captured: list[Compute] = []

    def capture(compute: Compute) -> Compute:
        compute()  # as a warm-up does
        captured.append(compute)
        return compute

    graphs.record(capture)
    eager = Runner(loaded.forward, loaded.slot, GatherAttention(eager_kv))
    torch.testing.assert_close(kv[:, :, :, :BLOCKS], eager_kv, rtol=0, atol=0)  # capturing writes into no block
    return Case(graphs, eager, kv, eager_kv, captured)


def test_replayed_steps_equal_eager_ones() -> None:
    """Logits and KV, for mixed lengths, at and between the borders of buckets, and for fewer requests than before."""
    case = make_case()
    lengths = [0, 7, 8, 9, 15, 31, 38, 39]
    for count in (8, 3, 5, 1, 2, 4, 7):
        case.step([(length, 1) for length in lengths[:count]])
    assert case.graphs.replayed == 7
    assert len(case.captured) == len(SIZES)


@pytest.mark.parametrize("sizes", [[(0, 5)], [(3, 1), (0, 9)], [(1, 1)] * 9])
def test_other_steps_run_eagerly(sizes: list[Item]) -> None:
    """A prompt, a mixed step, and more requests than the largest bucket: not replayed, and right."""
    case = make_case()
    case.step(sizes)
    assert case.graphs.replayed == 0


def test_moved_kv_is_read_where_it_is_now() -> None:
    """A replay looks its blocks up anew: the same request in other blocks gives the same logits."""
    case = make_case()
    for first in (0, 2):
        case.kv[:, :, :, first : first + 2] = case.kv[:, :, :, 10:12]
    found = []
    for table in ([0, 1], [2, 3]):
        packed = pack_step([BatchItem(token_ids=[5], start=12, block_ids=table)], BLOCK, case.kv.device)
        with torch.inference_mode():
            found.append(case.graphs.forward(packed))
    assert torch.equal(*found)


def test_a_forward_pass_that_cannot_be_captured_is_refused() -> None:
    """With the setting named, before anything is served."""
    case = make_case()

    def capture(compute: Compute) -> Compute:
        raise RuntimeError("operation not permitted when stream is capturing\nand a long explanation")

    with pytest.raises(ConfigError, match=r"steps of 8 requests .* capturing\); turn cuda_graphs off"):
        case.graphs.record(capture)


def test_graphs_are_refused_on_cpu() -> None:
    """As a ConfigError that says what to change."""
    config = EngineConfig(checkpoint=tiny_checkpoint("llama"), device="cpu", cuda_graphs=True)
    with pytest.raises(ConfigError, match="turn cuda_graphs off, or set device to cuda"):
        load_engine(config)


def test_an_engine_says_how_it_attends() -> None:
    """The backend's name, also once the engine is closed."""
    engine = load_engine(EngineConfig(checkpoint=tiny_checkpoint("llama"), device="cpu", attention="gather"))
    engine.close()
    assert engine.attention == "gather"
