"""Attention on CPU through our own kernels, which read paged KV where it lies.

What a request gets depends on nobody else in its batch, bit for bit. Nothing is padded, so any mix of lengths costs
what its KV costs to read. Prompts need AMX and bfloat16; others are left to torch.
"""

import numpy as np
import numpy.typing as npt
import torch

from services.engine.attention.gather import GatherAttention, GatherStep
from services.engine.attention.interface import AttentionBatch, LayerOptions
from services.engine.native.kernels import PROMPT_HEAD_DIMS, DecodeTables, Kernels


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
    """One step; the tables are the same for all layers."""

    def __init__(self, backend: NativeAttention, batch: AttentionBatch) -> None:
        super().__init__(backend, batch)
        self._native = backend
        self.kv = backend.kv
        self.num_decodes = batch.num_decodes
        self.slot_mapping = batch.slot_mapping
        self.tables = _decode_tables(batch)
        self._prompt_tables: dict[int, npt.NDArray[np.int32]] = {}

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
        table = self._prompt_tables.get(item)
        if table is None:
            table = self._prompt_tables[item] = np.array(self._batch.block_table[item], dtype=np.int32)
        query = query if query.stride(2) == 1 else query.contiguous()
        layer = self._native.layers[options.layer_idx]
        self._native.kernels.prompt_attention(out, query, layer, table, self._batch.cache_seqlens[item], options)


def _decode_tables(batch: AttentionBatch) -> DecodeTables:
    tables = batch.block_table[: batch.num_decodes]
    counts = np.array([len(table) for table in tables], dtype=np.int64)
    blocks = np.fromiter((block for table in tables for block in table), dtype=np.int32, count=int(counts.sum()))
    lengths = np.array(batch.cache_seqlens[: batch.num_decodes], dtype=np.int64)
    return DecodeTables(blocks, np.cumsum(counts) - counts, lengths)
