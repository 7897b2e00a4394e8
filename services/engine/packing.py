"""Packs the items of a step into one row of tokens.

Items of one token come first, ordered by length, so that a backend can group them; `order` leads back to the caller's
order. Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from services.engine.attention.interface import AttentionBatch
from services.engine.batch import BatchItem


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One forward pass over T tokens.

    Attributes:
        input_ids: [1, T] int64.
        position_ids: [1, T] int64.
        attention: What a backend needs.
        logit_rows: [R] int64, positions in the row whose logits are wanted; at least one, for models compute some.
        sampled: Indices into the caller's items, one for each wanted row of logits; may be empty.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention: AttentionBatch
    logit_rows: torch.Tensor
    sampled: tuple[int, ...]


def pack_step(items: Sequence[BatchItem], block_size: int, device: torch.device) -> PackedStep:
    """Packs items; each must feed at least one token."""
    order = _pack_order(items)
    packed = [items[index] for index in order]
    query_lens = np.array([len(item.token_ids) for item in packed], dtype=np.int64)
    starts = np.array([item.start for item in packed], dtype=np.int64)
    row_starts = np.cumsum(query_lens) - query_lens
    positions = np.arange(int(query_lens.sum()), dtype=np.int64) + np.repeat(starts - row_starts, query_lens)
    tables = [_needed_blocks(item, block_size) for item in packed]
    token_ids = np.fromiter(chain.from_iterable(item.token_ids for item in packed), np.int64, len(positions))
    sampled = [row for row, item in enumerate(packed) if item.samples]
    logit_rows = (row_starts + query_lens - 1)[sampled or [0]]
    attention = AttentionBatch(
        num_decodes=int((query_lens == 1).sum()),
        query_lens=tuple(query_lens.tolist()),
        cache_seqlens=tuple((starts + query_lens).tolist()),
        block_table=tuple(tables),
        slot_mapping=_to(device, _slots(tables, query_lens, positions, block_size)),
    )
    return PackedStep(
        input_ids=_to(device, token_ids)[None],
        position_ids=_to(device, positions)[None],
        attention=attention,
        logit_rows=_to(device, logit_rows),
        sampled=tuple(order[row] for row in sampled),
    )


def _pack_order(items: Sequence[BatchItem]) -> list[int]:
    def key(index: int) -> tuple[bool, int]:
        item = items[index]
        is_prompt = len(item.token_ids) > 1
        return is_prompt, 0 if is_prompt else item.start

    return sorted(range(len(items)), key=key)


def _needed_blocks(item: BatchItem, block_size: int) -> tuple[int, ...]:
    """The item's block table, cut to what its tokens need; a reservation may be longer."""
    length = item.start + len(item.token_ids)
    count = -(-length // block_size)
    if not item.token_ids or len(item.block_ids) < count:
        raise ValueError(
            f"an item feeds {len(item.token_ids)} tokens at {item.start} with {len(item.block_ids)} blocks of "
            f"{block_size}; it needs at least one token and {count} blocks"
        )
    return tuple(item.block_ids[:count])


def _slots(
    tables: Sequence[tuple[int, ...]], query_lens: np.ndarray, positions: np.ndarray, block_size: int
) -> np.ndarray:
    blocks, offsets = np.divmod(positions, block_size)
    first = num_decodes = int((query_lens == 1).sum())
    blocks[:num_decodes] = [table[-1] for table in tables[:num_decodes]]  # where a request's last position lies
    for table, count in zip(tables[num_decodes:], query_lens[num_decodes:].tolist(), strict=True):
        rows = slice(first, first + count)
        blocks[rows] = np.asarray(table, dtype=np.int64)[blocks[rows]]
        first = rows.stop
    return blocks * block_size + offsets


def _to(device: torch.device, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
