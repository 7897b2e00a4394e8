"""int8 weights: what they compute, where, and what they cost in quality."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from benchmarks.quality import VARIANTS, fresh_stories, perplexity
from services.common.checkpoint import resolve_checkpoint
from services.engine.config import EngineConfig
from services.engine.fingerprint import model_fingerprint
from services.engine.load import load_model
from services.engine.native.tiles import TileStore
from services.engine.quantized import QuantizedLinear, quantize_rows
from tests.harness.checkpoints import tiny_checkpoint
from tests.harness.native import kernels_or_none

Make = Callable[[nn.Linear], QuantizedLinear]


@pytest.fixture(params=["kernels", "torch"])
def quantized(request: pytest.FixtureRequest) -> Make:
    """Each way to multiply int8."""
    kernels = kernels_or_none()
    if request.param == "kernels" and (kernels is None or not kernels.can_multiply):
        pytest.skip("this machine has no compiler or no AMX")
    return lambda linear: QuantizedLinear(linear, kernels if request.param == "kernels" else None, TileStore())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 16, 33, 600, 2100])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 16), (128, 50), (1024, 770)])
def test_equals_the_product_of_the_rounded_numbers(
    quantized: Make, dtype: torch.dtype, rows: int, inputs: int, outputs: int
) -> None:
    """The result is that of the int8 numbers and their scales, up to the rounding of the dtype; any shape that fits."""
    torch.manual_seed(rows)
    linear = nn.Linear(inputs, outputs, bias=rows != 5).to(dtype)
    hidden = torch.randn(1, rows, inputs).to(dtype)
    (x, x_scale), (w, w_scale) = quantize_rows(hidden[0]), quantize_rows(linear.weight)
    wanted = (x.double() @ w.double().T) * x_scale.double() * w_scale[:, 0].double()
    wanted = wanted if linear.bias is None else wanted + linear.bias.double()
    tolerance = 1e-6 if dtype == torch.float32 else 8e-3
    with torch.inference_mode():
        got = quantized(linear)(hidden)
    assert got.dtype == dtype
    torch.testing.assert_close(got[0].double(), wanted, atol=tolerance, rtol=tolerance)


def test_inputs_that_fill_no_tile_go_to_torch() -> None:
    """A layer whose inputs are no multiple of 64 works all the same."""
    linear, hidden = nn.Linear(40, 8), torch.randn(3, 40)
    with torch.inference_mode():
        got = QuantizedLinear(linear, kernels_or_none(), TileStore())(hidden)
        torch.testing.assert_close(got, linear(hidden), atol=0.03, rtol=0.03)


def test_a_row_of_zeros_stays_one(quantized: Make) -> None:
    """Nothing is divided by a scale of zero."""
    with torch.inference_mode():
        assert not quantized(nn.Linear(64, 16, bias=False))(torch.zeros(2, 64)).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stay_visible_and_in_their_row(quantized: Make, bad: float) -> None:
    """A row with an element that is no number gives none; the other rows are right."""
    hidden = torch.randn(3, 64)
    hidden[1, 5] = bad
    with torch.inference_mode():
        got = quantized(nn.Linear(64, 32))(hidden)
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()


def test_quantized_weights_are_another_model() -> None:
    """KV of int8 weights is never given to a worker without: their fingerprints differ."""
    assert model_fingerprint(tiny_checkpoint(), "int8") != model_fingerprint(tiny_checkpoint())


def test_every_linear_layer_is_quantized() -> None:
    """No layer of the model keeps its floating-point weights."""
    config = EngineConfig(checkpoint=tiny_checkpoint(), dtype="bfloat16", device="cpu", quantization="int8")
    modules = list(load_model(config, lambda line: None).model.modules())
    assert not any(type(module) is nn.Linear for module in modules)
    assert any(isinstance(module, QuantizedLinear) for module in modules)


def test_perplexity_hardly_grows() -> None:
    """On stories that it never saw, the demo model loses at most 2 % to int8."""
    checkpoint = resolve_checkpoint("")
    documents = list(fresh_stories(Tokenizer.from_file(str(checkpoint / "tokenizer.json")), 8))
    found = {
        name: perplexity(EngineConfig(checkpoint=checkpoint, device="cpu", num_threads=1, **change), documents)
        for name, change in VARIANTS.items()
    }
    assert found["float32"] * 0.98 < found["int8"] < found["float32"] * 1.02
    assert found["int8"] != found["bfloat16"]
