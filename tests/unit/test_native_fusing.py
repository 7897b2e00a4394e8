"""Which modules of a model are fused, and which are left alone because they compute something else."""

import pytest
import torch
from torch import nn

from services.engine.attention.hook import StepSlot
from services.engine.config import EngineConfig
from services.engine.load import load_model
from services.engine.modules import PackedLinear
from services.engine.native.fusing import fuse_modules
from services.engine.native.kernels import Kernels
from services.engine.native.modules import FusedAttention, FusedMlp
from tests.harness.checkpoints import tiny_checkpoint
from tests.harness.native import kernels_or_none


@pytest.fixture
def kernels() -> Kernels:
    """The kernels of this machine."""
    found = kernels_or_none()
    if found is None:
        pytest.skip("no C++ compiler is installed")
    return found


@pytest.mark.parametrize(
    ("architecture", "attention", "mlp"),
    [
        ("llama", True, True),
        ("mistral", True, True),
        ("qwen2", True, True),
        ("qwen3", False, True),
        ("gemma2", True, False),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_families(kernels: Kernels, architecture: str, attention: bool, mlp: bool, dtype: str) -> None:
    """Norms of heads and other activations are seen: such modules stay what they are."""
    config = EngineConfig(checkpoint=tiny_checkpoint(architecture), dtype=dtype, device="cpu")
    kinds = [type(module) for module in load_model(config, lambda line: None).model.modules()]
    assert (FusedAttention in kinds, FusedMlp in kinds) == (attention, mlp)


def test_without_kernels_nothing_is_fused() -> None:
    """Switched off, the kernels are nowhere in the model."""
    config = EngineConfig(checkpoint=tiny_checkpoint("llama"), dtype="bfloat16", device="cpu", native_kernels=False)
    loaded = load_model(config, lambda line: None)
    assert loaded.kernels is None
    assert not any("native" in type(module).__module__ for module in loaded.model.modules())
    assert any(isinstance(module, PackedLinear) for module in loaded.model.modules())


class _Mlp(nn.Module):
    """Looks like a gated MLP and clips what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., 8] to the same."""
        gated = nn.functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        return self.down_proj(gated.clamp(-50, 50))


def test_what_differs_for_large_numbers_only_is_left_alone(kernels: Kernels) -> None:
    """Clipping does nothing to small numbers; large ones give it away."""
    model = nn.Sequential(_Mlp())
    assert fuse_modules(model, StepSlot(), [], kernels) == 0
