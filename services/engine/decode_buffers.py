"""The tensors that a captured decode step reads: always the same memory, filled anew for each step."""

import numpy as np
import torch

from services.engine.attention.device_batch import DeviceBatch
from services.engine.decode_buckets import RowShape, pad_rows
from services.engine.packing import PackedStep


class DecodeBuffers:
    """Inputs of a step of `size` requests that feed one token each; at first all of them are padding.

    Thread: the engine's. Padding rows keep whatever token id was there: any is as good.
    """

    def __init__(self, size: int, shape: RowShape, max_model_len: int, device: torch.device) -> None:
        self._shape = shape
        self.size = size
        self.input_ids = torch.zeros(1, size, dtype=torch.int64, device=device)
        self.position_ids = torch.zeros(1, size, dtype=torch.int64, device=device)
        self.slot_mapping = torch.full((size,), shape.spare_block * shape.block_size, device=device)
        self.logit_rows = torch.arange(size, device=device)
        borders = torch.arange(size + 1, dtype=torch.int32, device=device)
        self.batch = DeviceBatch(
            cu_seqlens_q=borders,
            cu_seqlens_k=borders.clone(),
            cache_seqlens=torch.ones(size, dtype=torch.int32, device=device),
            block_table=torch.full((size, shape.width), shape.spare_block, dtype=torch.int32, device=device),
            max_seqlen_q=1,
            max_seqlen_k=max_model_len,
        )

    def fill(self, packed: PackedStep) -> None:
        """Takes a step's requests, `size` of them at most, and makes all further rows padding again."""
        attention = packed.attention
        rows = pad_rows(attention.cache_seqlens, attention.block_table, self.size, self._shape)
        self.input_ids[:, : len(attention.cache_seqlens)].copy_(packed.input_ids)
        _put(self.position_ids[0], rows.positions)
        _put(self.slot_mapping, rows.slots)
        _put(self.batch.cache_seqlens, rows.lengths)
        _put(self.batch.cu_seqlens_k[1:], np.cumsum(rows.lengths, dtype=np.int32))
        _put(self.batch.block_table, rows.tables)


def _put(into: torch.Tensor, values: np.ndarray) -> None:
    into.copy_(torch.from_numpy(values))
