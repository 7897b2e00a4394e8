"""The C++ kernels as calls on tensors.

Shapes, dtypes and contiguity are the caller's to keep: nothing is checked here. Thread: any; a kernel uses as many
threads as torch would.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from services.engine.attention.interface import LayerOptions
from services.engine.native.library import load_library

_POINTER, _COUNT, _NUMBER, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "rms_norm": (_POINTER,) * 3 + (_COUNT,) * 2 + (_NUMBER, _THREADS),
    "silu_gate": (_POINTER,) * 2 + (_COUNT, _THREADS),
    "rotate": (_POINTER,) * 3 + (_COUNT,) * 5 + (_THREADS,),
    "largest": (_POINTER,) * 3 + (_COUNT,) * 2 + (_THREADS,),
    "store": (_POINTER,) * 4 + (_COUNT,) * 6 + (_THREADS,),
    "quantized_linear": (_POINTER,) * 6 + (_NUMBER,) + (_COUNT,) * 3 + (_THREADS,) * 2,
    "run_layers": (_POINTER,) * 10 + (_COUNT, _THREADS),
    "decode_attention": (_POINTER,) * 6 + (_COUNT,) * 9 + (_NUMBER,) * 2 + (_THREADS,),
}
_LINEAR = (_POINTER,) * 5 + (_NUMBER,) + (_COUNT,) * 3 + (_THREADS,) * 2
_PROMPT_ATTENTION = (_POINTER,) * 4 + (_COUNT,) * 10 + (_NUMBER,) * 2 + (_THREADS,)
PROMPT_HEAD_DIMS = (64, 128)
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


_STORED, _GATED = 0, 2  # of Into, in kernels.h
_NO_NORM = None, 0.0


@dataclass(frozen=True, slots=True)
class StepTables:
    """Where the KV of a step's N requests lies, and where their tokens are.

    Attributes:
        blocks: Block tables of all requests, end to end.
        first: [N] where each begins in `blocks`.
        lengths: [N] positions in KV, the new ones included.
        rows: [N + 1] where the tokens of each begin in the step, and the end.
    """

    blocks: npt.NDArray[np.int32]
    first: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


class Kernels:
    """The kernels of this machine; `can_multiply` where it has AMX.

    Raises:
        KernelsUnavailable: see `load_library`.
    """

    def __init__(self) -> None:
        library = load_library()
        self.can_multiply = bool(library.can_multiply())
        self._linear = _function(library, "linear_bfloat16", _LINEAR)
        self._prompt_attention = _function(library, "prompt_attention_bfloat16", _PROMPT_ATTENTION)
        self._functions = {
            (name, dtype): _function(library, f"{name}_{suffix}", signature)
            for name, signature in _SIGNATURES.items()
            for dtype, suffix in DTYPES.items()
        }

    def linear(
        self, x: torch.Tensor, tiles: torch.Tensor, n: int, bias: torch.Tensor | None, *, gated: bool = False
    ) -> torch.Tensor:
        """X · weightᵀ + bias, bfloat16: contiguous [..., K] to [..., N], over the tiles of a weight (`TileStore`).

        Gated, it is what `silu_gate` makes of that, [..., N / 2], for N in 32.
        """
        k, into = x.shape[-1], _GATED if gated else _STORED
        out = x.new_empty(*x.shape[:-1], n // 2 if gated else n)
        pointers = out.data_ptr(), x.data_ptr(), tiles.data_ptr(), None if bias is None else bias.data_ptr()
        self._linear(*pointers, *_NO_NORM, x.numel() // k, n, k, into, torch.get_num_threads())
        return out

    def quantized_linear(
        self,
        x: torch.Tensor,
        tiles: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gated: bool = False,
    ) -> torch.Tensor:
        """As `linear`, with int8 weights of one float32 scale an output and x quantized row by row."""
        n, k, into = scale.shape[0], x.shape[-1], _GATED if gated else _STORED
        out = x.new_empty(*x.shape[:-1], n // 2 if gated else n)
        at = None if bias is None else bias.data_ptr()
        pointers = out.data_ptr(), x.data_ptr(), tiles.data_ptr(), scale.data_ptr(), at
        call = self._functions["quantized_linear", x.dtype]
        call(*pointers, *_NO_NORM, x.numel() // k, n, k, into, torch.get_num_threads())
        return out

    def rms_norm(self, x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
        """Normed: x / rms(x) · scale: contiguous [..., D] to the same; scale [D] in float32."""
        out, width = torch.empty_like(x), x.shape[-1]
        call = self._functions["rms_norm", x.dtype]
        call(out.data_ptr(), x.data_ptr(), scale.data_ptr(), x.numel() // width, width, eps, torch.get_num_threads())
        return out

    def silu_gate(self, joined: torch.Tensor) -> torch.Tensor:
        """silu(gate) · up: contiguous [..., 2·D] to [..., D], D in 16.

        `joined` has sixteen elements of gate and sixteen of up in turn (`take_turns`).
        """
        out = joined.new_empty(*joined.shape[:-1], joined.shape[-1] // 2)
        call = self._functions["silu_gate", joined.dtype]
        call(out.data_ptr(), joined.data_ptr(), out.numel(), torch.get_num_threads())
        return out

    def largest(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest element of each row [R, D], float32, and the first place where it is, int64.

        Of a row with something that is no number, the element is none either.
        """
        (count, width), rows = rows.shape, rows.contiguous()
        values, places = torch.empty(count), torch.empty(count, dtype=torch.int64)
        call = self._functions["largest", rows.dtype]
        call(values.data_ptr(), places.data_ptr(), rows.data_ptr(), count, width, torch.get_num_threads())
        return values, places

    def rotate(self, heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> None:
        """Turns [T, heads, head_dim] in place by contiguous [T, R] angles; only the first R elements of a head turn."""
        rows, count, _ = heads.shape
        call = self._functions["rotate", heads.dtype]
        tables = cosines.data_ptr(), sines.data_ptr()
        strides = heads.stride(0), count, heads.stride(1), cosines.shape[-1]
        call(heads.data_ptr(), *tables, rows, *strides, torch.get_num_threads())

    def store(self, kv: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """Puts [heads, T, head_dim] at slots [T] of a layer [2, heads, blocks, block_size, head_dim]."""
        heads, tokens, dim = key.shape
        if key.stride() != value.stride() or key.stride(2) != 1:
            key, value = key.contiguous(), value.contiguous()
        counts = tokens, heads, kv.shape[2] * kv.shape[3], dim, key.stride(1), key.stride(0)
        call = self._functions["store", kv.dtype]
        pointers = kv.data_ptr(), key.data_ptr(), value.data_ptr(), slots.data_ptr()
        call(*pointers, *counts, torch.get_num_threads())

    def decode_attention(
        self, out: torch.Tensor, query: torch.Tensor, kv: torch.Tensor, tables: StepTables, options: LayerOptions
    ) -> None:
        """One query token of each of R requests, the first: [heads, R, head_dim] to contiguous [R, heads, head_dim]."""
        _, heads, num_blocks, block_size, dim = kv.shape
        window = options.sliding_window or 0
        pointers = out.data_ptr(), query.data_ptr(), kv.data_ptr()
        arrays = tables.blocks.ctypes.data, tables.first.ctypes.data, tables.lengths.ctypes.data
        counts = query.shape[1], heads, query.shape[0] // heads, dim, num_blocks, block_size, window
        strides = query.stride(1), query.stride(0)
        call = self._functions["decode_attention", kv.dtype]
        call(*pointers, *arrays, *strides, *counts, options.scale, options.softcap or 0.0, torch.get_num_threads())

    def run_layers(
        self,
        hidden: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        tables: StepTables,
        sizes: Sequence[int],
        layers: "ctypes.Array[Any]",
    ) -> None:
        """The tokens of a step through decoder layers; see `layers.cpp` for what `layers` and `sizes` hold.

        Args:
            hidden: Contiguous [1, T, D]; what goes in and what comes out.
            turns: Contiguous cosines and sines [1, T, R].
            slots: [T] where the new KV goes.
            tables: The requests; those of several tokens as `prompt_attention` takes them.
            sizes: rows, requests, those of one token, width, inner width, heads, KV heads, head_dim, R, KV blocks,
                block size.
            layers: One entry for each layer.
        """
        tensors = hidden.data_ptr(), turns[0].data_ptr(), turns[1].data_ptr(), slots.data_ptr()
        arrays = (array.ctypes.data for array in (tables.blocks, tables.first, tables.lengths, tables.rows))
        counts = (_COUNT * len(sizes))(*sizes)
        call = self._functions["run_layers", hidden.dtype]
        call(*tensors, *arrays, counts, layers, len(layers), torch.get_num_threads())

    def prompt_attention(
        self,
        out: torch.Tensor,
        query: torch.Tensor,
        kv: torch.Tensor,
        table: npt.NDArray[np.int32],
        length: int,
        options: LayerOptions,
    ) -> None:
        """The last T of `length` tokens of one request, whose KV is stored; where `can_multiply`, in bfloat16.

        Args:
            out: Contiguous [T, num_heads, head_dim], written; head_dim one of `PROMPT_HEAD_DIMS`.
            query: [num_heads, T, head_dim].
            kv: The layer's [2, kv_heads, blocks, block_size, head_dim].
            table: The request's blocks.
            length: Positions in KV, the new ones included.
            options: The layer's own numbers.
        """
        _, heads, num_blocks, block_size, dim = kv.shape
        pointers = out.data_ptr(), query.data_ptr(), kv.data_ptr(), table.ctypes.data
        sizes = query.stride(1), query.stride(0), query.shape[1], length
        counts = heads, query.shape[0] // heads, dim, num_blocks, block_size, options.sliding_window or 0
        numbers = options.scale, options.softcap or 0.0
        self._prompt_attention(*pointers, *sizes, *counts, *numbers, torch.get_num_threads())


def _function(library: ctypes.CDLL, name: str, signature: tuple[Any, ...]) -> Callable[..., None]:
    found = getattr(library, name)
    found.argtypes, found.restype = signature, None
    return found
