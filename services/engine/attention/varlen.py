"""Attention through torch's own variable-length kernel with a block table, on CUDA.

Not measured and not run: no CUDA device was at hand when this was written; `tests/gpu` holds its tests. Block tables
need flash-attn 3 or 4 beside torch, and there is no logit softcapping; `select` knows both.
"""

import torch
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from services.engine.attention.device_batch import DeviceBatch, kernel_views, store
from services.engine.attention.interface import AttentionBatch, LayerOptions


class VarlenAttention:
    """Serves steps over one KV tensor [num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim]."""

    name = "varlen"

    def __init__(self, kv: torch.Tensor, flash: str) -> None:
        # Process-wide in torch, but only this backend uses what it changes.
        activate_flash_attention_impl(flash)
        self.views = kernel_views(kv)

    def begin(self, batch: AttentionBatch) -> "VarlenStep":
        """Prepares what all layers of a step share."""
        return VarlenStep(self, DeviceBatch.of(batch), batch.slot_mapping)

    def begin_on(self, batch: DeviceBatch, slot_mapping: torch.Tensor) -> "VarlenStep":
        """See `CapturableBackend.begin_on`."""
        return VarlenStep(self, batch, slot_mapping)


class VarlenStep:
    """One step; a window of (left, 0) is causal, aligned at the end of each request."""

    def __init__(self, backend: VarlenAttention, batch: DeviceBatch, slot_mapping: torch.Tensor) -> None:
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
        out = varlen_attn(
            query.transpose(0, 1).contiguous(),
            views.keys,
            views.values,
            batch.cu_seqlens_q,
            batch.cu_seqlens_k,
            batch.max_seqlen_q,
            batch.max_seqlen_k,
            scale=options.scale,
            window_size=(window, 0),
            enable_gqa=query.shape[0] != key.shape[0],
            seqused_k=batch.cache_seqlens,
            block_table=batch.block_table,
        )
        if not isinstance(out, torch.Tensor):
            raise TypeError("varlen_attn returned more than its output, though nothing else was asked for")
        return out
