"""In bfloat16 the engine is as close to float32 as transformers' own bfloat16 is."""

import pytest
import torch

from services.engine.attention.select import make_backend
from services.engine.batch import BatchItem, SampleSpec
from services.engine.config import EngineConfig
from services.engine.load import load_model
from services.engine.modules import PackedLinear, can_pack_linears
from services.engine.packing import pack_step
from services.engine.runner import Runner
from tests.harness.checkpoints import ARCHITECTURES, random_prompt, reference_model, tiny_checkpoint
from tests.harness.engine_driver import GREEDY

CPU = torch.device("cpu")
BLOCK = 16
LENGTHS = (40, 90, 150)
# Errors of two computations that round differently scatter; their means over thousands of logits hardly do.
TOLERANCE = 1.3


def engine_logits(architecture: str, prompts: list[list[int]], native: bool) -> torch.Tensor:
    """Logits behind each prompt, from a bfloat16 model fed in two steps: all but the last token, then that one."""
    config = EngineConfig(
        checkpoint=tiny_checkpoint(architecture), dtype="bfloat16", device="cpu", num_threads=1, native_kernels=native
    )
    loaded = load_model(config, lambda line: None)
    shape = loaded.shape
    kv = torch.zeros(
        shape.num_layers, 2, shape.num_kv_heads, 20 * len(prompts), BLOCK, shape.head_dim, dtype=torch.bfloat16
    )
    runner = Runner(
        loaded.forward, loaded.slot, make_backend("gather" if loaded.kernels is None else "native", kv, loaded.kernels)
    )
    blocks = [list(range(20 * number, 20 * number + 20)) for number in range(len(prompts))]
    samples = (SampleSpec(sampling=GREEDY, choice=0, index=0),)
    first = [BatchItem(token_ids=p[:-1], start=0, block_ids=b) for p, b in zip(prompts, blocks, strict=True)]
    then = [
        BatchItem(token_ids=p[-1:], start=len(p) - 1, block_ids=b, samples=samples)
        for p, b in zip(prompts, blocks, strict=True)
    ]
    with torch.inference_mode():
        runner.forward(pack_step(first, BLOCK, CPU))
        return runner.forward(pack_step(then, BLOCK, CPU)).float()


def reference_logits(architecture: str, dtype: str, prompts: list[list[int]]) -> torch.Tensor:
    """The same from transformers."""
    model = reference_model(tiny_checkpoint(architecture), dtype)
    with torch.inference_mode():
        return torch.stack([model(torch.tensor([prompt])).logits[0, -1].float() for prompt in prompts])


@pytest.mark.parametrize("native", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_as_good_as_those_of_transformers(architecture: str, native: bool) -> None:
    """Mean distance to float32 logits is at most 1.3 times that of transformers' own bfloat16, and not nothing."""
    prompts = [random_prompt(length, seed) for length in LENGTHS for seed in range(4)]
    exact = reference_logits(architecture, "float32", prompts)
    own = (engine_logits(architecture, prompts, native) - exact).abs().mean()
    theirs = (reference_logits(architecture, "bfloat16", prompts) - exact).abs().mean()
    assert 0 < own <= TOLERANCE * theirs
    assert own < 0.25 * exact.std()


@pytest.mark.skipif(not can_pack_linears(CPU, torch.bfloat16), reason="oneDNN has no bfloat16 on this CPU")
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_linear_equals_the_plain_one(has_bias: bool) -> None:
    """For one row, some rows and many, the packed layer gives the plain layer's result up to the last bit or two."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(70, 33, bias=has_bias).to(torch.bfloat16)
    packed = PackedLinear(plain)
    for count in (1, 2, 16, 200):
        hidden = torch.randn(1, count, 70).to(torch.bfloat16)
        with torch.inference_mode():
            torch.testing.assert_close(packed(hidden), plain(hidden), atol=0.02, rtol=0.02)
