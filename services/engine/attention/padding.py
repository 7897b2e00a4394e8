"""Groups requests that feed one token each, so that each group can be gathered into one rectangle of KV.

Pure arithmetic over lengths and block ids; knows no tensor of a model. Padding a short request to a long one's length
reads KV for nothing, so lengths in a group differ by at most `MAX_STRETCH` times or `SMALL_PAD_TOKENS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_STRETCH = 1.5
SMALL_PAD_TOKENS = 128


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Requests first … last-1 as a rectangle of B rows and S gathered positions.

    Attributes:
        first: First row of the group.
        last: One past its last row.
        blocks: [B, S / block_size] block ids; short rows are padded with blocks of their own.
        masked: [B, S] True where a position is no part of the row's window.
        stale: [B, S] True where KV may hold anything: behind the last token in the last block, or in its copies.
    """

    first: int
    last: int
    blocks: npt.NDArray[np.int64]
    masked: npt.NDArray[np.bool_]
    stale: npt.NDArray[np.bool_]


def group_decodes(
    lengths: npt.NDArray[np.int64], tables: Sequence[Sequence[int]], block_size: int, window: int | None
) -> list[DecodeGroup]:
    """Cuts rows, ordered by length, into groups; only blocks that a window touches are gathered."""
    seen_from = np.zeros_like(lengths) if window is None else np.maximum(lengths - window, 0)
    first_blocks = seen_from // block_size
    counts = -(-lengths // block_size) - first_blocks
    groups: list[DecodeGroup] = []
    first = 0
    for last in group_ends(counts * block_size):
        rows = slice(first, last)
        blocks = _rectangle(tables[rows], first_blocks[rows], counts[rows])
        positions = first_blocks[rows, None] * block_size + np.arange(blocks.shape[1] * block_size)[None, :]
        behind = positions >= lengths[rows, None]
        masked = behind | (positions < seen_from[rows, None])
        # Padding repeats a row's first block, which is full unless it is the row's only one.
        is_copy = np.arange(blocks.shape[1] * block_size)[None, :] >= counts[rows, None] * block_size
        stale = behind & ~(is_copy & (counts[rows, None] > 1))
        groups.append(DecodeGroup(first, last, blocks, masked, stale))
        first = last
    return groups


def group_ends(sizes: npt.NDArray[np.int64]) -> list[int]:
    """Ends of the groups of rows with these sizes: a group ends where a size leaves the span of its smallest one."""
    ends: list[int] = []
    low = high = 0
    for row, size in enumerate(sizes.tolist()):
        next_low, next_high = (min(low, size), max(high, size)) if row > (ends[-1] if ends else 0) else (size, size)
        if next_high > max(next_low * MAX_STRETCH, next_low + SMALL_PAD_TOKENS):
            ends.append(row)
            next_low = next_high = size
        low, high = next_low, next_high
    return [*ends, len(sizes)] if len(sizes) else []


def _rectangle(
    tables: Sequence[Sequence[int]], first_blocks: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    blocks = np.empty((len(tables), int(counts.max())), dtype=np.int64)
    for row, table in enumerate(tables):
        begin, count = int(first_blocks[row]), int(counts[row])
        blocks[row, :count] = table[begin : begin + count]
        blocks[row, count:] = table[begin]
    return blocks
