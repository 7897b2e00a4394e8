"""KV blocks in memory, hand-computable: what a test writes at a token position can be read back anywhere."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from services.common.types import KvLayout

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

LAYOUT = KvLayout(
    model_fingerprint="demo",
    dtype="float32",
    num_layers=2,
    num_kv_heads=2,
    head_dim=4,
    block_size=4,
    transports=("gloo",),
)


def layout_with(**changes: object) -> KvLayout:
    """The usual layout with some fields changed."""
    return replace(LAYOUT, **changes)  # type: ignore[arg-type]


class FakeKv:
    """A `KvBlocks` over one tensor [num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim]."""

    def __init__(self, layout: KvLayout = LAYOUT, num_blocks: int = 64) -> None:
        self.layout = layout
        heads = (layout.num_layers, 2, layout.num_kv_heads)
        self.blocks = torch.zeros(*heads, num_blocks, layout.block_size, layout.head_dim, dtype=DTYPES[layout.dtype])
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []

    def read(self, block_ids: Sequence[int], start: int, end: int, out: Tensor) -> None:
        self.reads.append((start, end))
        for position in range(start, end):
            block, offset = self._place(block_ids, position)
            out[:, :, :, position - start] = self.blocks[:, :, :, block, offset]

    def write(self, block_ids: Sequence[int], start: int, end: int, data: Tensor) -> None:
        for position in range(start, end):
            block, offset = self._place(block_ids, position)
            self.blocks[:, :, :, block, offset] = data[:, :, :, position - start]
        self.writes.append((start, end))

    def fill(self, block_ids: Sequence[int], start: int, end: int, salt: int = 0) -> None:
        """Computes positions [start, end) as a prefill would: every element tells its place."""
        for position in range(start, end):
            block, offset = self._place(block_ids, position)
            self.blocks[:, :, :, block, offset] = self.expected(position, salt)

    def expected(self, position: int, salt: int = 0) -> Tensor:
        """What `fill` puts at a position: [num_layers, 2, num_kv_heads, head_dim], exact in every dtype."""
        shape = (self.layout.num_layers, 2, self.layout.num_kv_heads, self.layout.head_dim)
        count = torch.arange(self.layout.token_elements).reshape(shape)
        return ((count * 7 + position * 13 + salt * 5) % 251 + 1).to(self.blocks.dtype)

    def holds(self, block_ids: Sequence[int], start: int, end: int, salt: int = 0) -> bool:
        """Whether positions [start, end) are what `fill` puts there."""
        places = ((position, *self._place(block_ids, position)) for position in range(start, end))
        return all(torch.equal(self.blocks[:, :, :, b, o], self.expected(p, salt)) for p, b, o in places)

    def is_blank(self, block_ids: Sequence[int], start: int, end: int) -> bool:
        """Whether nothing was ever written at positions [start, end)."""
        places = (self._place(block_ids, position) for position in range(start, end))
        return not any(bool(self.blocks[:, :, :, b, o].any()) for b, o in places)

    def _place(self, block_ids: Sequence[int], position: int) -> tuple[int, int]:
        return block_ids[position // self.layout.block_size], position % self.layout.block_size
