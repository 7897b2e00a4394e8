"""Replayed decode steps against eager ones on a CUDA device, for each backend that can be captured."""

from dataclasses import dataclass

import pytest
import torch

from services.engine.attention.interface import LayerOptions
from services.engine.attention.select import make_backend, refusal
from services.engine.batch import BatchItem
from services.engine.config import EngineConfig
from services.engine.engine import load_engine
from services.engine.graph_runner import SPARE_BLOCKS, GraphRunner, with_graphs
from services.engine.load import load_model
from services.engine.packing import pack_step
from services.engine.paged_kv import PagedKv
from services.engine.runner import Runner
from tests.harness.checkpoints import random_prompt, tiny_checkpoint
from tests.harness.engine_driver import EngineDriver

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BLOCKS = 64
BACKENDS = [("flash", 256), ("varlen", 128)]


@dataclass
class Case:
    """Both runners over one KV."""

    graphs: GraphRunner
    eager: Runner
    kv: PagedKv

    def compare(self, items: list[BatchItem]) -> None:
        """Runs a step both ways on the same KV and compares logits and KV, up to bfloat16 rounding."""
        packed = pack_step(items, self.kv.block_size, self.kv.device)
        before = self.kv.tensor.clone()
        with torch.inference_mode():
            expected = self.eager.forward(packed)
            after = self.kv.tensor.clone()
            self.kv.tensor.copy_(before)
            found = self.graphs.forward(packed)
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
        torch.testing.assert_close(self.kv.tensor[:, :, :, :BLOCKS], after[:, :, :, :BLOCKS], atol=0.05, rtol=0.05)

    def items(self, lengths: list[int]) -> list[BatchItem]:
        """Requests with blocks of their own that have so many tokens and feed one more."""
        blocks = list(range(BLOCKS))[::-1]
        size = self.kv.block_size
        tables = [[blocks.pop() for _ in range(-(-(length + 1) // size))] for length in lengths]
        return [
            BatchItem(token_ids=[3 + row], start=length, block_ids=table)
            for row, (length, table) in enumerate(zip(lengths, tables, strict=True))
        ]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend[0])
def case(request: pytest.FixtureRequest) -> Case:
    """A small model in bfloat16 with noise for KV."""
    name, block_size = request.param
    reason = refusal(name, torch.device("cuda"), torch.bfloat16, [LayerOptions(layer_idx=0, scale=1.0)], 0)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    path = tiny_checkpoint("llama", hidden_size=384, intermediate_size=512, head_dim=64)
    loaded = load_model(EngineConfig(checkpoint=path, dtype="bfloat16", device="cuda"), lambda line: None)
    shape = loaded.shape
    dims = (shape.num_layers, 2, shape.num_kv_heads, BLOCKS + SPARE_BLOCKS, block_size, shape.head_dim)
    kv = PagedKv(torch.randn(dims, dtype=torch.bfloat16, device="cuda"))
    backend = make_backend(name, kv.tensor)
    eager = Runner(loaded.forward, loaded.slot, backend)
    return Case(with_graphs(eager, backend, kv, 1024, 12), eager, kv)  # type: ignore[arg-type]


def test_replays_equal_eager_steps(case: Case) -> None:
    """Mixed lengths around the borders of blocks, at and between the borders of buckets, more and fewer in turn."""
    lengths = [0, 1, 127, 128, 129, 255, 256, 257, 500, 700, 800, 900]
    for count in (12, 1, 8, 9, 2, 3, 7, 4, 5):
        case.compare(case.items(lengths[:count]))
    assert case.graphs.replayed == 9


def test_prompts_and_larger_steps_run_eagerly(case: Case) -> None:
    """A prompt, a mixed step, and more requests than the largest bucket."""
    single = case.items([5])
    prompt = BatchItem(token_ids=[4, 5, 6], start=0, block_ids=[BLOCKS - 1])
    for items in ([prompt], [*single, prompt], case.items([3] * 13)):
        case.compare(items)
    assert case.graphs.replayed == 0


def test_kv_that_was_handed_over_is_read(case: Case) -> None:
    """KV that another thread's copy wrote after the capture counts, and the request's new blocks do."""
    items = case.items([300, 40])
    case.compare(items)
    kv = case.kv
    data = torch.randn(kv.num_layers, 2, kv.num_kv_heads, 300, kv.head_dim, dtype=torch.bfloat16)
    moved = list(range(BLOCKS - 4, BLOCKS))
    kv.write(moved, 0, 300, data)
    case.compare([BatchItem(token_ids=[9], start=300, block_ids=moved), items[1]])


@pytest.mark.parametrize(("name", "block_size"), BACKENDS)
def test_engines_with_and_without_graphs_agree(name: str, block_size: int) -> None:
    """Greedy tokens of eight requests, up to near ties in bfloat16; every decode step was a replay."""
    reason = refusal(name, torch.device("cuda"), torch.bfloat16, [LayerOptions(layer_idx=0, scale=1.0)], block_size)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    path = tiny_checkpoint("llama", hidden_size=384, intermediate_size=512, head_dim=64)
    answers = []
    for cuda_graphs in (False, True):
        config = EngineConfig(
            checkpoint=path, dtype="bfloat16", device="cuda", attention=name, num_blocks=200, cuda_graphs=cuda_graphs
        )
        engine = load_engine(config)
        driver = EngineDriver(engine)
        prompts = [random_prompt(length) for length in (1, 7, 40, 127, 128, 255, 300, 513)]
        answers.append(driver.run([driver.request(prompt, max_tokens=8) for prompt in prompts]))
        assert engine.stats().get("replayed_steps", 0) == (7 if cuda_graphs else 0)
        assert engine.limits.num_blocks == 200
        engine.close()
    assert sum(a == b for a, b in zip(*answers, strict=True)) >= 6
