"""Modules that compute with our own kernels what modules of torch and `transformers` compute, up to rounding.

On CPU, in float32 or bfloat16. Thread: one, the engine's.
"""

from typing import Any, TypeGuard, cast

import torch
from torch import nn

from services.engine.attention.hook import StepSlot
from services.engine.attention.interface import LayerOptions
from services.engine.native.kernels import Kernels
from services.engine.native.tiles import TileStore
from services.engine.quantized import QuantizedLinear

_TURN = 16


class NativeLinear(nn.Module):
    """A bfloat16 linear layer; its weight lies as tiles."""

    def __init__(self, linear: nn.Linear, kernels: Kernels, store: TileStore) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(store.pack(linear.weight.detach()), requires_grad=False)
        self.bias = cast("nn.Parameter | None", linear.bias)  # typed as always there, but it is not
        self._kernels = kernels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return self._kernels.linear(hidden.contiguous(), self.weight, self.out_features, self.bias)

    def gated(self, hidden: torch.Tensor) -> torch.Tensor:
        """`silu_gate` of that, [..., out_features / 2]."""
        return self._kernels.linear(hidden.contiguous(), self.weight, self.out_features, self.bias, gated=True)

    @staticmethod
    def can_take(linear: nn.Linear) -> bool:
        """Whether the kernel's shapes fit."""
        fits = linear.in_features % 32 == 0 and linear.out_features >= 16
        return fits and linear.weight.dtype == torch.bfloat16


class NativeRmsNorm(nn.Module):
    """x / rms(x) · scale in one pass."""

    def __init__(self, scale: torch.Tensor, eps: float, dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.detach().float(), requires_grad=False)
        self.eps = eps
        self.dtype = dtype
        self._kernels = kernels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] to the same."""
        return self._kernels.rms_norm(hidden.contiguous(), self.scale, self.eps)


class FusedMlp(nn.Module):
    """down(silu(gate(x)) · up(x)) with gate and up in one product.

    Raises:
        ValueError: gate and up cannot take turns in it.
    """

    def __init__(self, mlp: nn.Module, kernels: Kernels) -> None:
        super().__init__()
        joined = join([cast(nn.Linear, mlp.gate_proj), cast(nn.Linear, mlp.up_proj)])
        self.gate_up = take_turns(joined)
        self.down_proj = cast(nn.Linear, mlp.down_proj)
        self._kernels = kernels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] to the same."""
        return self.down_proj(self._gated(hidden))

    def _gated(self, hidden: torch.Tensor) -> torch.Tensor:
        linear = cast(nn.Module, self.gate_up)
        return linear.gated(hidden) if is_native(linear) else self._kernels.silu_gate(linear(hidden))


class FusedAttention(nn.Module):
    """Self-attention with rotary positions: queries, keys and values in one product, turned where they lie."""

    def __init__(self, attention: nn.Module, options: LayerOptions, head_dim: int, kernels: Kernels) -> None:
        super().__init__()
        parts = [cast(nn.Linear, getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]
        self.qkv = join(parts)
        self.o_proj = cast(nn.Linear, attention.o_proj)
        self.num_heads, self.num_kv_heads, _ = (part.out_features // head_dim for part in parts)
        self.head_dim = head_dim
        self.options = options
        self._slot = cast(StepSlot, attention.step_slot)
        self._kernels = kernels

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **_: Any
    ) -> tuple[torch.Tensor, None]:
        """[1, T, D] to the same; position embeddings are cosines and sines [1, T, R]."""
        tokens, turned = hidden_states.shape[1], self.num_heads + self.num_kv_heads
        heads = self.qkv(hidden_states).view(tokens, -1, self.head_dim)
        cosines, sines = position_embeddings
        self._kernels.rotate(heads[:, :turned], cosines.contiguous(), sines.contiguous())
        by_head = heads.transpose(0, 1)
        query, key, value = by_head[: self.num_heads], by_head[self.num_heads : turned], by_head[turned:]
        mixed = self._slot.step.attend(query, key, value, self.options)
        return self.o_proj(mixed.view(1, tokens, -1)), None


def is_native(linear: nn.Module) -> TypeGuard[NativeLinear | QuantizedLinear]:
    """Whether our own kernels compute the products of a layer."""
    return isinstance(linear, NativeLinear) or (isinstance(linear, QuantizedLinear) and linear.is_native)


def join(linears: list[nn.Linear]) -> nn.Linear:
    """One layer that gives the outputs of several over the same input, end to end."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [cast("torch.Tensor | None", linear.bias) for linear in linears]
    has_bias = any(bias is not None for bias in biases)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if has_bias:
        zeros = [weight.new_zeros(linear.out_features) for linear in linears]
        filled = [zero if bias is None else bias.detach() for zero, bias in zip(zeros, biases, strict=True)]
        joined.bias = nn.Parameter(torch.cat(filled), requires_grad=False)
    return joined


def take_turns(linear: nn.Linear) -> nn.Linear:
    """The same layer with sixteen outputs of its first half and sixteen of its second in turn, as for `silu_gate`.

    Raises:
        ValueError: the halves do not consist of sixteens.
    """
    if linear.out_features % (2 * _TURN):
        raise ValueError(f"{linear.out_features} outputs cannot take turns by {_TURN}")
    order = torch.arange(linear.out_features).view(2, -1, _TURN).transpose(0, 1).flatten()
    linear.weight = nn.Parameter(linear.weight[order], requires_grad=False)
    if cast("nn.Parameter | None", linear.bias) is not None:
        linear.bias = nn.Parameter(linear.bias[order], requires_grad=False)
    return linear
