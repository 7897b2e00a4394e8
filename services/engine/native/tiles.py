"""The order in which our own products read weights: as tiles, end to end, on huge pages.

    [panels][steps][2][16 rows][64 bytes]    a panel: 32 rows of the weight; a step: 64 bytes of each of them

One stream, so that a processor knows what comes next, and in 2 MiB pages, at whose ends it need not stop: a core reads
1.4 times as fast as from rows on 4 KiB pages (docs/performance.md).
"""

import os

import torch

# torch puts what is 2 MiB or larger on huge pages, where the kernel has them; it looks once, at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_PANEL, _HALF, _STEP_BYTES, _TILE_ROW = 32, 16, 64, 64
_CHUNK_BYTES = 32 << 20
_HUGE_PAGE = 2 << 20


class TileStore:
    """Memory for the tiles of a model, in chunks large enough for huge pages. Thread: one, that which loads."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The tiles of a weight [N, K] with N of 16 or more and K in 64 bytes: [panels, steps, 2, 16, elements]."""
        n, k = weight.shape
        each = _STEP_BYTES // weight.element_size()
        if n % _PANEL:
            weight = weight[panel_rows(n)]
        by_tile = weight.view(-1, 2, _HALF, k // each, each).permute(0, 3, 1, 2, 4)
        tiles = self._take(by_tile.numel() * weight.element_size()).view(weight.dtype).view(by_tile.shape)
        return tiles.copy_(by_tile)

    def _take(self, num_bytes: int) -> torch.Tensor:
        if self._free.numel() < num_bytes:
            chunk = torch.empty(max(num_bytes, _CHUNK_BYTES) + _HUGE_PAGE, dtype=torch.uint8)
            self._free = chunk[-chunk.data_ptr() % _HUGE_PAGE :]  # what lies before it is on small pages
        taken, self._free = self._free.split((num_bytes, self._free.numel() - num_bytes))
        return taken


def panel_rows(n: int) -> torch.Tensor:
    """Which rows of a weight its panels have, end to end: the last panel may overlap the one before it."""
    starts = torch.arange(0, n, _PANEL).clamp(max=max(0, n - _PANEL))
    half = torch.arange(_HALF)
    return (starts[:, None] + torch.cat((half, min(_HALF, n - _HALF) + half))).flatten()
