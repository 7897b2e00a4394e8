"""The CUDA attention backends against the formula, KV in and out of a device, and tokens against the CPU engine's."""

import pytest
import torch

from services.engine.attention.interface import LayerOptions
from services.engine.attention.select import make_backend, refusal
from services.engine.config import EngineConfig
from services.engine.engine import load_engine
from services.engine.paged_kv import PagedKv
from services.kvtransfer.staging import Staging
from tests.harness.checkpoints import random_prompt, tiny_checkpoint
from tests.harness.engine_driver import EngineDriver
from tests.harness.paged_case import PagedCase

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

MIXED = [(0, 1), (3, 1), (255, 1), (256, 1), (700, 1), (0, 5), (0, 300), (13, 70), (512, 64), (300, 2)]
BACKENDS = [("gather", 16), ("flash", 256), ("varlen", 128)]


def skip_unless_runnable(name: str, options: LayerOptions) -> None:
    reason = refusal(name, torch.device("cuda"), torch.bfloat16, [options], 0)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")


@pytest.mark.parametrize(("name", "block_size"), BACKENDS)
@pytest.mark.parametrize("window", [None, 1, 64, 1000])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
def test_backends_equal_the_formula(name: str, block_size: int, window: int | None, heads: tuple[int, int]) -> None:
    """One-token items and prompts, with and without history, up to bfloat16 rounding; unused KV is NaN."""
    options = LayerOptions(layer_idx=1, scale=0.125, sliding_window=window)
    skip_unless_runnable(name, options)
    case = PagedCase.random(
        MIXED,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=64,
        block_size=block_size,
        dtype=torch.bfloat16,
        device="cuda",
    )
    got = case.run(make_backend(name, case.kv), options)
    torch.testing.assert_close(got.double(), case.expected(options), atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("name", "block_size"), BACKENDS[:2])
def test_backends_bend_scores(name: str, block_size: int) -> None:
    """Logit softcapping."""
    options = LayerOptions(layer_idx=1, scale=0.125, softcap=2.0)
    skip_unless_runnable(name, options)
    case = PagedCase.random(MIXED, head_dim=64, block_size=block_size, dtype=torch.bfloat16, device="cuda")
    got = case.run(make_backend(name, case.kv), options)
    torch.testing.assert_close(got.double(), case.expected(options), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kv_in_and_out_of_the_device(place: str, dtype: torch.dtype) -> None:
    """A range that starts and ends inside blocks reads back as written, converted, and nothing else changes."""
    kv = PagedKv(torch.zeros(2, 2, 3, 9, 8, 16, dtype=torch.bfloat16, device="cuda"))
    data = torch.randn(2, 2, 3, 21, 16).to(dtype).to(place)
    kv.write([4, 1, 7], 2, 23, data)
    out = torch.empty(2, 2, 3, 21, 16, dtype=torch.bfloat16, device=place)
    kv.read([4, 1, 7], 2, 23, out)
    assert torch.equal(out, data.to(torch.bfloat16))
    assert int(kv.tensor.count_nonzero()) == int(out.count_nonzero())


@pytest.mark.parametrize(("name", "block_size"), BACKENDS)
def test_chunks_do_not_change_greedy_tokens(name: str, block_size: int) -> None:
    """A prompt in one chunk and in several says mostly the same in bfloat16, where a near tie may flip."""
    skip_unless_runnable(name, LayerOptions(layer_idx=0, scale=1.0))
    path = tiny_checkpoint("llama", hidden_size=384, intermediate_size=512, head_dim=64)
    config = EngineConfig(checkpoint=path, dtype="bfloat16", device="cuda", attention=name, num_blocks=300)
    driver = EngineDriver(load_engine(config))
    assert driver.engine.layout.block_size == block_size
    prompts = [random_prompt(length) for length in (40, 300, 513)]
    whole = driver.run([driver.request(prompt, max_tokens=1) for prompt in prompts])
    cut = driver.run([driver.request(prompt, max_tokens=1, chunk=100) for prompt in prompts])
    assert sum(a == b for a, b in zip(whole, cut, strict=True)) >= 2


def test_copies_wait_for_the_step_before() -> None:
    """KV that a step is still computing when it returns is read as it will be, not as it was."""
    kv = PagedKv(torch.zeros(2, 2, 3, 9, 8, 16, dtype=torch.bfloat16, device="cuda"))
    torch.cuda._sleep(100_000_000)  # tens of milliseconds of work before the KV is written
    kv.tensor.fill_(1.0)
    kv.mark()
    out = torch.zeros(2, 2, 3, 21, 16, dtype=torch.bfloat16)
    kv.read([4, 1, 7], 2, 23, out)
    assert out.eq(1.0).all()


def test_host_staging_is_pinned() -> None:
    """Buffers that gloo sends from are page-locked where the KV is on a GPU."""
    assert Staging(100, 1000, is_pinned=True).take(10).is_pinned()
