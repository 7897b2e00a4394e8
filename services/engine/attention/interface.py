"""The one signature behind which every attention backend stands.

A step packs the queries of several requests into one row of tokens. A backend sees that row's borders and block tables
(`AttentionBatch`), prepares once per step whatever all layers share, and then serves one call per layer. It stores the
new keys and values in the paged KV before it reads. Knows nothing of models, schedulers or sampling.
"""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """What differs from layer to layer.

    `sliding_window` is the number of keys a query sees, itself included; None sees all before it. `softcap` c bends
    scores to c·tanh(score/c).
    """

    layer_idx: int
    scale: float
    sliding_window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Borders and block tables of N packed requests with T fed tokens.

    The first `num_decodes` requests feed exactly one token each, ordered by length. Counts live on the host, because
    backends choose shapes by them.

    Attributes:
        num_decodes: Requests at the front that feed one token.
        query_lens: Tokens each request feeds; N entries.
        cache_seqlens: Tokens of each request in KV once this step's are stored; N entries.
        block_table: Block ids of each request, as many as it needs; N entries.
        slot_mapping: [T] int64 on the device; where each fed token's KV goes (block · block_size + offset).
    """

    num_decodes: int
    query_lens: tuple[int, ...]
    cache_seqlens: tuple[int, ...]
    block_table: tuple[tuple[int, ...], ...]
    slot_mapping: torch.Tensor


class AttentionStep(Protocol):
    """Attention of one step: the work that all layers share is done."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """Stores key and value, then attends.

        Args:
            query: [num_heads, T, head_dim], rotated.
            key: [num_kv_heads, T, head_dim], rotated.
            value: [num_kv_heads, T, head_dim].
            options: The layer's own numbers.

        Returns:
            [T, num_heads, head_dim], contiguous.
        """
        ...


class AttentionBackend(Protocol):
    """Attention over one paged KV tensor."""

    name: str

    def begin(self, batch: AttentionBatch) -> AttentionStep:
        """Prepares what all layers of a step share."""
        ...
