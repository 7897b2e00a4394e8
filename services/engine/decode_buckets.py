"""Batch sizes that decode steps are padded to, and what padding rows hold.

Pure arithmetic over lengths and block ids; knows neither tensors of a model nor CUDA. A padding row is a request of one
token in a block of its own, the spare one, which belongs to no request: whatever it computes is stored there and read
by padding rows alone.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST = 256
_SMALL = (1, 2, 4)
_STRIDE = 8


def bucket_sizes(most: int) -> tuple[int, ...]:
    """Sizes for up to `most` requests, ascending; the last is `most` itself, or `LARGEST` where that is less."""
    top = min(most, LARGEST)
    return tuple(sorted({top, *(size for size in (*_SMALL, *range(_STRIDE, top, _STRIDE)) if size < top)}))


def choose_bucket(sizes: Sequence[int], count: int) -> int | None:
    """The smallest of these ascending sizes that holds so many requests; None where none does."""
    place = bisect_left(sizes, count)
    return sizes[place] if place < len(sizes) else None


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Requests that feed one token each, padded to B rows.

    Attributes:
        positions: [B] int64, position of each fed token.
        slots: [B] int64, where its KV goes (block · block_size + offset).
        lengths: [B] int32, tokens in KV once it is stored.
        tables: [B, width] int32 block ids; what lies behind a row's length is the spare block.
    """

    positions: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    tables: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class RowShape:
    """What all rows have in common: tokens of a block, blocks of the longest request, and the block that is spare."""

    block_size: int
    width: int
    spare_block: int


def pad_rows(lengths: Sequence[int], tables: Sequence[Sequence[int]], size: int, shape: RowShape) -> DecodeRows:
    """Pads requests of these lengths, the fed token included, to `size` rows; `tables` are cut to what they need.

    Raises:
        ValueError: there are more requests than rows, or one is longer than the width.
    """
    if len(lengths) > size or max(map(len, tables)) > shape.width:
        raise ValueError(f"{len(lengths)} requests of up to {max(lengths)} tokens do not fit {size} rows of {shape}")
    padded = np.ones(size, dtype=np.int32)
    padded[: len(lengths)] = lengths
    blocks = np.full((size, shape.width), shape.spare_block, dtype=np.int32)
    for row, table in enumerate(tables):
        blocks[row, : len(table)] = table
    positions = padded.astype(np.int64) - 1
    last = blocks[np.arange(size), positions // shape.block_size].astype(np.int64)
    return DecodeRows(positions, last * shape.block_size + positions % shape.block_size, padded, blocks)
