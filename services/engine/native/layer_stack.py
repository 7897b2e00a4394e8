"""All decoder layers of a model in one call.

Between two kernels Python takes about as long as a kernel for few rows, and what stands between products of many rows
is written and read again. Layers that consist of parts which our kernels compute anyway become one module; where our
kernels do not attend to all requests of a step, that module runs the layers one by one as before.
"""

import ctypes
from typing import Any, cast

import torch
from torch import nn

from services.engine.attention.hook import StepSlot
from services.engine.attention.native import NativeAttention, NativeStep
from services.engine.batch import BatchItem
from services.engine.native.kernels import Kernels
from services.engine.native.modules import FusedAttention, FusedMlp, NativeLinear, NativeRmsNorm, is_native
from services.engine.packing import pack_step
from services.engine.quantized import QuantizedLinear

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_BLOCK_SIZE = 16
_PROOF = ((0, 1), (4, 1), (9, 1), (0, 7), (3, 10))  # positions in KV and new tokens of requests


class _Linear(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("qkv", _Linear),
        ("out", _Linear),
        ("mlp_norm", ctypes.c_void_p),
        ("gate_up", _Linear),
        ("down", _Linear),
        ("kv", ctypes.c_void_p),
        ("window", ctypes.c_int64),
        ("attention_eps", ctypes.c_double),
        ("mlp_eps", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
    )


class LayerStack(nn.Module):
    """Decoder layers [1, T, D] to the same, in one call of C++."""

    def __init__(self, layers: nn.ModuleList, slot: StepSlot, kernels: Kernels) -> None:
        super().__init__()
        self.layers = layers
        self._slot = slot
        self._kernels = kernels
        self._table: ctypes.Array[_Layer] | None = None
        self._kv: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, **others: Any) -> torch.Tensor:
        """As the layers one after the other; `others` is what each of them takes."""
        step = self._slot.step
        if isinstance(step, NativeStep) and step.is_native:
            return self._run(step, hidden_states, *others["position_embeddings"])
        return self.one_by_one(hidden_states, **others)

    def one_by_one(self, hidden: torch.Tensor, **others: Any) -> torch.Tensor:
        """The layers in their order."""
        for layer in self.layers:
            hidden = layer(hidden, **others)
        return hidden

    def _run(self, step: NativeStep, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        if self._table is None or self._kv is not step.kv:
            self._kv, self._table = step.kv, _describe(self.layers, step.kv)
        attention = cast(FusedAttention, self.layers[0].self_attn)
        inner = cast(FusedMlp, self.layers[0].mlp).gate_up.out_features // 2
        heads = attention.num_heads, attention.num_kv_heads, attention.head_dim, cosines.shape[-1]
        items = len(step.tables.lengths), step.num_decodes
        sizes = hidden.shape[1], *items, hidden.shape[2], inner, *heads, step.kv.shape[3], step.kv.shape[4]
        hidden = hidden.clone()
        self._kernels.run_layers(
            hidden, (cosines.contiguous(), sines.contiguous()), step.slot_mapping, step.tables, sizes, self._table
        )
        return hidden


def stack_layers(model: nn.Module, slot: StepSlot, kernels: Kernels) -> bool:
    """Makes one module of a model's decoder layers, in place, where it computes the same; says whether it did."""
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) and all(_fits(layer) for layer in child):
                stack = LayerStack(child, slot, kernels)
                if _is_proven(stack, slot, kernels):
                    setattr(parent, name, nn.ModuleList([stack]))
                    return True
    return False


def _fits(layer: nn.Module) -> bool:
    """True for two norms, a fused attention and a fused MLP whose products are our kernels'."""
    children = dict(layer.named_children())
    if children.keys() != _PARTS:
        return False
    norms = (children["input_layernorm"], children["post_attention_layernorm"])
    attention, mlp = children["self_attn"], children["mlp"]
    if not all(isinstance(norm, NativeRmsNorm) for norm in norms):
        return False
    if not isinstance(attention, FusedAttention) or not isinstance(mlp, FusedMlp):
        return False
    linears: tuple[nn.Module, ...] = (attention.qkv, attention.o_proj, mlp.gate_up, mlp.down_proj)
    return all(is_native(linear) for linear in linears)


@torch.inference_mode()
def _is_proven(stack: LayerStack, slot: StepSlot, kernels: Kernels) -> bool:
    """Runs some requests both ways: what stands between the parts of a layer is not told by its parts."""
    attention = cast(FusedAttention, stack.layers[0].self_attn)
    norm = cast(NativeRmsNorm, stack.layers[0].input_layernorm)
    generator = torch.Generator().manual_seed(0)
    dtype = norm.dtype
    size = (len(stack.layers), 2, attention.num_kv_heads, len(_PROOF), _BLOCK_SIZE, attention.head_dim)
    kv = torch.randn(size, generator=generator).to(dtype)
    backends = [NativeAttention(kv.clone(), kernels) for _ in range(2)]
    items = [
        BatchItem(token_ids=range(count if backends[0].has_prompts else 1), start=start, block_ids=[block])
        for block, (start, count) in enumerate(_PROOF)
    ]
    packed = pack_step(items, _BLOCK_SIZE, torch.device("cpu"))
    rows = packed.input_ids.shape[1]
    hidden = torch.randn(1, rows, norm.scale.shape[0], generator=generator).to(dtype)
    angles = torch.rand(1, rows, attention.head_dim, generator=generator)
    others = {"position_embeddings": (angles.cos().to(dtype), angles.sin().to(dtype)), "attention_mask": None}
    with slot.running(backends[0].begin(packed.attention)):
        together = stack(hidden, **others)
    with slot.running(backends[1].begin(packed.attention)):
        apart = stack.one_by_one(hidden, **others)
    return torch.equal(together, apart)


def _describe(layers: nn.ModuleList, kv: torch.Tensor) -> "ctypes.Array[_Layer]":
    """Where everything lies; valid as long as the modules and the KV live."""
    table = (_Layer * len(layers))()
    for entry, layer, layer_kv in zip(table, layers, kv.unbind(0), strict=True):
        attention, mlp = cast(FusedAttention, layer.self_attn), cast(FusedMlp, layer.mlp)
        before = cast(NativeRmsNorm, layer.input_layernorm)
        between = cast(NativeRmsNorm, layer.post_attention_layernorm)
        entry.attention_norm, entry.attention_eps = before.scale.data_ptr(), before.eps
        entry.mlp_norm, entry.mlp_eps = between.scale.data_ptr(), between.eps
        entry.qkv, entry.out = _linear(attention.qkv), _linear(attention.o_proj)
        entry.gate_up, entry.down = _linear(mlp.gate_up), _linear(mlp.down_proj)
        options = attention.options
        entry.kv, entry.window = layer_kv.data_ptr(), options.sliding_window or 0
        entry.scale, entry.softcap = options.scale, options.softcap or 0.0
    return table


def _linear(module: nn.Module) -> _Linear:
    linear = cast("NativeLinear | QuantizedLinear", module)
    scale = linear.scale.data_ptr() if isinstance(linear, QuantizedLinear) else None
    return _Linear(linear.weight.data_ptr(), scale, None if linear.bias is None else linear.bias.data_ptr())
