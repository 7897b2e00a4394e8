"""What the CUDA kernels share: a batch's borders as device tensors, KV as the views they take, and the store into it.

Not measured and not run: no CUDA device was at hand when this was written. Knows no kernel.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch

from services.engine.attention.interface import AttentionBatch, AttentionStep


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """Borders of N requests on the device, int32, under the kernels' own names."""

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    cache_seqlens: torch.Tensor
    block_table: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int

    @classmethod
    def of(cls, batch: AttentionBatch) -> "DeviceBatch":
        """Builds the tensors; block tables are padded with block 0, which no kernel reads behind a length."""
        device, width = batch.slot_mapping.device, max(map(len, batch.block_table))

        def tensor(values: object) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32).to(device, non_blocking=True)

        return cls(
            cu_seqlens_q=tensor([0, *accumulate(batch.query_lens)]),
            cu_seqlens_k=tensor([0, *accumulate(batch.cache_seqlens)]),
            cache_seqlens=tensor(batch.cache_seqlens),
            block_table=tensor([[*row, *[0] * (width - len(row))] for row in batch.block_table]),
            max_seqlen_q=max(batch.query_lens),
            max_seqlen_k=max(batch.cache_seqlens),
        )


@runtime_checkable
class CapturableBackend(Protocol):
    """A backend that launches the same kernels whatever the tensors of its batch hold, so that they can be captured."""

    name: str

    def begin_on(self, batch: DeviceBatch, slot_mapping: torch.Tensor) -> AttentionStep:
        """A step over tensors that the caller fills; they are read when kernels run, not before."""
        ...


@dataclass(frozen=True, slots=True)
class LayerViews:
    """One layer's KV as [num_blocks, block_size, num_kv_heads, head_dim]; views, not copies."""

    keys: torch.Tensor
    values: torch.Tensor


def kernel_views(kv: torch.Tensor) -> list[LayerViews]:
    """Views of every layer of [num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim]."""
    moved = kv.permute(0, 1, 3, 4, 2, 5)
    return [LayerViews(moved[layer, 0], moved[layer, 1]) for layer in range(kv.shape[0])]


def store(views: LayerViews, slot_mapping: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Stores new keys and values [num_kv_heads, T, head_dim] at their slots."""
    block_size = views.keys.shape[1]
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    views.keys[blocks, offsets] = key.transpose(0, 1)
    views.values[blocks, offsets] = value.transpose(0, 1)
