"""Linear layers with int8 weights: one scale for each output, activations quantized row by row as they come.

Sums of products are whole numbers and exact, so a row's result depends neither on its batch mates nor on the machine up
to float32 rounding of the scales. Source: Dettmers et al., "LLM.int8()" (2022), vector-wise quantization.
"""

from typing import cast

import torch
from torch import nn

from services.engine.native.kernels import Kernels
from services.engine.native.tiles import TileStore

_LARGEST = 127.0


class QuantizedLinear(nn.Module):
    """A linear layer of int8 by int8, in our own kernel over tiles where that can run, else in torch's."""

    def __init__(self, linear: nn.Linear, kernels: Kernels | None, store: TileStore) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        fits = linear.in_features % 64 == 0 and linear.out_features >= 16
        self._kernels = kernels if kernels is not None and kernels.can_multiply and fits else None
        weight, scale = quantize_rows(linear.weight.detach())
        self.weight = nn.Parameter(store.pack(weight) if self.is_native else weight, requires_grad=False)
        self.scale = nn.Parameter(scale[:, 0].contiguous(), requires_grad=False)
        bias = cast("torch.Tensor | None", linear.bias)  # typed as always there, but it is not
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def is_native(self) -> bool:
        """Whether our own kernel computes it."""
        return self._kernels is not None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features], in the dtype of `hidden`."""
        if self._kernels is not None:
            return self._kernels.quantized_linear(hidden.contiguous(), self.weight, self.scale, self.bias)
        numbers, scale = quantize_rows(hidden.reshape(-1, self.in_features))
        sums = torch.ops.aten._int_mm(numbers, self.weight.t())
        out = sums.float() * scale * self.scale
        out = out if self.bias is None else out + self.bias
        return out.to(hidden.dtype).view(*hidden.shape[:-1], self.out_features)

    def gated(self, hidden: torch.Tensor) -> torch.Tensor:
        """`silu_gate` of that, [..., out_features / 2]; where it `is_native`."""
        kernels = cast(Kernels, self._kernels)
        return kernels.quantized_linear(hidden.contiguous(), self.weight, self.scale, self.bias, gated=True)


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [R, K] as int8 and their float32 scales [R, 1], which are no number where an element is none."""
    wide = rows.float()
    scale = wide.abs().amax(-1, keepdim=True) / _LARGEST
    divisor = torch.where(scale > 0, scale, 1.0)
    return (wide / divisor).round().nan_to_num(0.0).to(torch.int8), torch.where(scale.isfinite(), scale, torch.nan)
