"""Swaps parts of a `transformers` model for faster ones that compute the same up to rounding.

Linear layers in bfloat16 on CPU go to our own kernel where the processor has AMX, else to oneDNN's packed form; RMS
norms, found by what they compute and not by their name, go to our own kernel or to torch's. Modules that match neither
stay as they are. Knows nothing of attention.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from services.engine.native.kernels import Kernels
from services.engine.native.modules import NativeLinear, NativeRmsNorm
from services.engine.native.tiles import TileStore
from services.engine.quantized import QuantizedLinear


class PackedLinear(nn.Module):
    """A bfloat16 linear layer whose weight lies in oneDNN's blocked layout, reordered once instead of at every call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), _PACK_ROWS)
        bias = cast("torch.Tensor | None", linear.bias)  # typed as always there, but it is not
        self.bias = None if bias is None else bias.detach()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return torch.ops.mkldnn._linear_pointwise(hidden, self.packed, self.bias, "none", [], "")


_PACK_ROWS = 16  # the row count that the layout is chosen for; measured equal or better for 1 to 256 rows


class RmsNorm(nn.Module):
    """x / rms(x) · weight in one call."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] to the same."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class OffsetRmsNorm(nn.Module):
    """x / rms(x) · (1 + weight), all in float32 as Gemma defines it."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(1.0 + weight.detach().float(), requires_grad=False)
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] to the same."""
        return functional.rms_norm(hidden.float(), self.scale.shape, self.scale, self.eps).type_as(hidden)


def swap_modules(
    model: nn.Module, linear: Callable[[nn.Linear], nn.Module] | None, kernels: Kernels | None
) -> dict[str, int]:
    """Swaps what can be swapped, in place, linear layers by `linear`; returns counts by kind."""
    counts = {"linears": 0, "norms": 0}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if linear is not None and type(child) is nn.Linear:
                setattr(parent, name, linear(child))
                counts["linears"] += 1
            elif (norm := fast_norm(child, kernels)) is not None:
                setattr(parent, name, norm)
                counts["norms"] += 1
    return counts


def fast_linear(
    device: torch.device, dtype: torch.dtype, kernels: Kernels | None, quantization: str = "none"
) -> Callable[[nn.Linear], nn.Module] | None:
    """What makes linear layers fast on this device in this dtype; None where torch's own are."""
    store = TileStore()
    if quantization == "int8":
        return lambda linear: QuantizedLinear(linear, kernels, store)
    if not can_pack_linears(device, dtype):
        return None
    if kernels is None or not kernels.can_multiply:
        return PackedLinear
    return lambda linear: (
        NativeLinear(linear, kernels, store) if NativeLinear.can_take(linear) else PackedLinear(linear)
    )


def can_pack_linears(device: torch.device, dtype: torch.dtype) -> bool:
    """True where oneDNN computes bfloat16 products on this CPU."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fast_norm(module: nn.Module, kernels: Kernels | None = None) -> nn.Module | None:
    """A faster module that computes what this RMS norm computes, or None where it is none that is known.

    The module is tried on random numbers: its name proves nothing, and two families differ only by 1 + weight.
    """
    parameters = list(module.named_parameters())
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if len(parameters) != 1 or parameters[0][0] != "weight" or not isinstance(eps, float):
        return None
    weight = cast(torch.Tensor, module.weight)
    if weight.dim() != 1 or isinstance(module, nn.LayerNorm) or "RMSNorm" not in type(module).__name__:
        return None
    sample = torch.randn(4, weight.shape[0], generator=torch.Generator().manual_seed(0))
    sample = sample.to(weight.device, weight.dtype)
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    with torch.no_grad():
        wanted = module(sample)
        for candidate in _norms(weight, eps, kernels):
            if torch.allclose(candidate(sample), wanted, rtol=tolerance, atol=tolerance):
                return candidate
    return None


def _norms(weight: torch.Tensor, eps: float, kernels: Kernels | None) -> tuple[nn.Module, ...]:
    if kernels is None:
        return RmsNorm(weight, eps), OffsetRmsNorm(weight, eps)
    wide = weight.detach().float()
    return tuple(NativeRmsNorm(scale, eps, weight.dtype, kernels) for scale in (wide, 1.0 + wide))
