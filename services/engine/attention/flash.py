"""Attention through flash-attn's paged kernels on CUDA.

Not measured and not run: no CUDA device was at hand when this was written; `tests/gpu` holds its tests. The kernels
take KV as [num_blocks, block_size, num_kv_heads, head_dim] with any strides over a contiguous head_dim, so the
head-major tensor is handed over as a view. Blocks are multiples of 256 tokens, which flash-attn 2.8 demands.
"""

from collections.abc import Callable

import torch

from services.engine.attention.device_batch import DeviceBatch, kernel_views, store
from services.engine.attention.interface import AttentionBatch, LayerOptions


class FlashAttention:
    """Serves steps over one KV tensor [num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim]."""

    name = "flash"

    def __init__(self, kv: torch.Tensor) -> None:
        # Imported here: the package is an extra that needs CUDA to build, and has no types.
        from flash_attn import flash_attn_varlen_func  # pyright: ignore

        self.kernel: Callable[..., torch.Tensor] = flash_attn_varlen_func
        self.views = kernel_views(kv)

    def begin(self, batch: AttentionBatch) -> "FlashStep":
        """Prepares what all layers of a step share."""
        return FlashStep(self, DeviceBatch.of(batch), batch.slot_mapping)

    def begin_on(self, batch: DeviceBatch, slot_mapping: torch.Tensor) -> "FlashStep":
        """See `CapturableBackend.begin_on`."""
        return FlashStep(self, batch, slot_mapping)


class FlashStep:
    """One step; causal masks are aligned at the end of each request."""

    def __init__(self, backend: FlashAttention, batch: DeviceBatch, slot_mapping: torch.Tensor) -> None:
        self._backend = backend
        self._slot_mapping = slot_mapping
        self._batch = batch

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """See `AttentionStep.attend`."""
        batch, views = self._batch, self._backend.views[options.layer_idx]
        store(views, self._slot_mapping, key, value)
        window = -1 if options.sliding_window is None else options.sliding_window - 1
        return self._backend.kernel(
            query.transpose(0, 1),
            views.keys,
            views.values,
            cu_seqlens_q=batch.cu_seqlens_q,
            cu_seqlens_k=batch.cu_seqlens_k,
            max_seqlen_q=batch.max_seqlen_q,
            max_seqlen_k=batch.max_seqlen_k,
            softmax_scale=options.scale,
            causal=True,
            window_size=(window, 0),
            softcap=options.softcap or 0.0,
            block_table=batch.block_table,
        )
