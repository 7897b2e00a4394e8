"""The KV storage of a worker as the transfer library sees it."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from services.common.types import KvLayout


class KvBlocks(Protocol):
    """Blocks of KV that can be read and written by token range.

    Thread: both methods may be called on any thread, also while the engine computes other blocks. A block that is
    read or written here is touched by nobody else at that time; the caller sees to it. Both are finished when they
    return.
    """

    @property
    def layout(self) -> KvLayout:
        """Shape and element type of the KV."""
        ...

    def read(self, block_ids: Sequence[int], start: int, end: int, out: Tensor) -> None:
        """Copies token positions [start, end) of a block table into `out`.

        Args:
            block_ids: Block table that covers positions 0 .. end-1 at least.
            start: First token position.
            end: One past the last token position.
            out: Contiguous [num_layers, 2, num_kv_heads, end - start, head_dim] in the layout's dtype.
        """
        ...

    def write(self, block_ids: Sequence[int], start: int, end: int, data: Tensor) -> None:
        """Copies `data`, shaped as `read` gives it, into positions [start, end); converts the dtype if need be."""
        ...
