"""Replaces attention and MLP modules of a loaded model by fused ones, each tried before it is believed.

A module's name and parts suggest what it computes; whether it does is seen on random numbers, small and huge, because
families differ in what stands between the parts: norms of heads, clipping, other activations. Knows nothing of KV.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from services.engine.attention.hook import StepSlot, UnsupportedAttention
from services.engine.attention.interface import LayerOptions
from services.engine.native.kernels import Kernels
from services.engine.native.modules import FusedAttention, FusedMlp

_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj"}
_SCALES = (1.0, 1e4)
_TOKENS = 5
_REFUSED = (TypeError, ValueError, RuntimeError, AttributeError, UnsupportedAttention)


class EchoStep:
    """Stands where a step of a backend would; what it returns tells all that it was given apart."""

    def __init__(self) -> None:
        self.options: LayerOptions | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """A different share of query, key and value."""
        self.options = options
        groups = query.shape[0] // key.shape[0]
        mixed = query + 0.5 * key.repeat_interleave(groups, 0) + 0.25 * value.repeat_interleave(groups, 0)
        return mixed.transpose(0, 1).contiguous()


def fuse_modules(model: nn.Module, slot: StepSlot, layers: Sequence[LayerOptions], kernels: Kernels) -> int:
    """Fuses what can be fused, in place; returns how many modules.

    Args:
        model: Loaded and with its slot attached; its linear layers are torch's own.
        slot: The model's.
        layers: Each attention layer's numbers, as found by running it.
        kernels: What fused modules compute with.
    """
    fused = 0
    with torch.inference_mode():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                replacement = _fused_mlp(child, kernels) or _fused_attention(child, slot, layers, kernels)
                if replacement is not None:
                    setattr(parent, name, replacement)
                    fused += 1
    return fused


def _fused_mlp(mlp: nn.Module, kernels: Kernels) -> FusedMlp | None:
    if not _is_made_of(mlp, _MLP_PARTS):
        return None
    return _proven(lambda: FusedMlp(mlp, kernels), lambda module, hidden: module(hidden), mlp, mlp.gate_proj)


def _fused_attention(
    attention: nn.Module, slot: StepSlot, layers: Sequence[LayerOptions], kernels: Kernels
) -> FusedAttention | None:
    index, head_dim = getattr(attention, "layer_idx", None), getattr(attention, "head_dim", None)
    if not _is_made_of(attention, _ATTENTION_PARTS) or not isinstance(index, int) or not isinstance(head_dim, int):
        return None

    def run(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        angles = torch.rand(1, _TOKENS, head_dim, generator=_generator()).mul_(6)
        turns = angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
        echo = EchoStep()
        with slot.running(echo):
            mixed = module(hidden_states=hidden, position_embeddings=turns, attention_mask=None)[0]
        if echo.options != layers[index]:
            raise UnsupportedAttention("its layers change")
        return mixed

    return _proven(
        lambda: FusedAttention(attention, layers[index], head_dim, kernels), run, attention, attention.q_proj
    )


def _proven(
    make: Callable[[], Any], run: Callable[[nn.Module, torch.Tensor], torch.Tensor], old: Any, first: Any
) -> Any:
    """The new module if it computes what the old one does, else None."""
    try:
        new = make()
        for scale in _SCALES:
            hidden = torch.randn(1, _TOKENS, first.in_features, generator=_generator()).mul_(scale)
            hidden = hidden.to(first.weight.dtype)
            wanted, got = run(old, hidden).float(), run(new, hidden).float()
            tolerance = (1e-4 if first.weight.dtype == torch.float32 else 3e-2) * float(wanted.abs().max())
            if not torch.allclose(got, wanted, rtol=0, atol=tolerance):
                return None
    except _REFUSED:
        return None
    return new


def _is_made_of(module: nn.Module, parts: set[str]) -> bool:
    """True where exactly these linear layers hold all parameters."""
    children = dict(module.named_children())
    linears = {name for name, child in children.items() if type(child) is nn.Linear}
    owners = {name.rpartition(".")[0] for name, _ in module.named_parameters()}
    return linears == parts == owners


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
