"""Attention on CPU through our own kernels, which read paged KV where it lies.

What a request gets depends on nobody else in its batch, bit for bit. Nothing is padded, so any mix of lengths costs
what its KV costs to read. Prompts need AMX and bfloat16; others are left to torch.
"""

from itertools import chain

import numpy as np
import torch

from services.engine.attention.gather import GatherAttention, GatherStep
from services.engine.attention.interface import AttentionBatch, LayerOptions
from services.engine.native.kernels import PROMPT_HEAD_DIMS, Kernels, StepTables


class NativeAttention(GatherAttention):
    """Serves steps over one KV tensor [num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim]."""

    name = "native"

    def __init__(self, kv: torch.Tensor, kernels: Kernels) -> None:
        super().__init__(kv)
        self.kv = kv
        self.kernels = kernels
        self.layers = list(kv.unbind(0))
        self.has_prompts = kernels.can_multiply and kv.dtype == torch.bfloat16 and kv.shape[-1] in PROMPT_HEAD_DIMS

    def begin(self, batch: AttentionBatch) -> "NativeStep":
        """Prepares what all layers of a step share."""
        return NativeStep(self, batch)


class NativeStep(GatherStep):
    """One step; tables are the same for all layers. It `is_native` where our kernels attend to all of its requests."""

    def __init__(self, backend: NativeAttention, batch: AttentionBatch) -> None:
        super().__init__(backend, batch)
        self._native = backend
        self.kv = backend.kv
        self.num_decodes = batch.num_decodes
        self.is_native = backend.has_prompts or batch.num_decodes == len(batch.query_lens)
        self.slot_mapping = batch.slot_mapping
        self.tables = _step_tables(batch)

    def store(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> None:
        """Puts the step's keys and values where the KV wants them."""
        self._native.kernels.store(self._native.layers[layer], key, value, self.slot_mapping)

    def attend_decodes(self, query: torch.Tensor, out: torch.Tensor, options: LayerOptions) -> None:
        """The one-token requests, all at once."""
        count = self.num_decodes
        if count:
            layer = self._native.layers[options.layer_idx]
            query = query if query.stride(2) == 1 else query.contiguous()
            self._native.kernels.decode_attention(out[:count], query[:, :count], layer, self.tables, options)

    def attend_prompt(
        self,
        item: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        options: LayerOptions,
    ) -> None:
        """Several tokens of one request, whose keys and values are stored."""
        if not self._native.has_prompts:
            super().attend_prompt(item, query, key, value, out, options)
            return
        table = self.tables.blocks[self.tables.first[item] :]
        query = query if query.stride(2) == 1 else query.contiguous()
        layer = self._native.layers[options.layer_idx]
        self._native.kernels.prompt_attention(out, query, layer, table, self._batch.cache_seqlens[item], options)


def _step_tables(batch: AttentionBatch) -> StepTables:
    tables = batch.block_table
    counts = np.array([len(table) for table in tables], dtype=np.int64)
    blocks = np.fromiter(chain.from_iterable(tables), dtype=np.int32, count=int(counts.sum()))
    lengths = np.array(batch.cache_seqlens, dtype=np.int64)
    rows = np.cumsum((0, *batch.query_lens), dtype=np.int64)
    return StepTables(blocks, np.cumsum(counts) - counts, lengths, rows)
