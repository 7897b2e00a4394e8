"""The KV memory of one engine, and the only way KV gets in or out of it besides attention.

`read` and `write` move token ranges for handoffs and may run on any thread, on blocks that no step writes meanwhile. On
CPU they go through numpy: a torch operation on a second thread would start a second OpenMP pool. Knows nothing of who
holds which block.
"""

from collections.abc import Sequence

import numpy as np
import torch

from services.engine.cuda_copy import CudaCopier
from services.engine.float_bits import Array, convert_floats


class PagedKv:
    """One tensor [num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim] (keys are plane 0)."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.num_layers, _, self.num_kv_heads, self.num_blocks, self.block_size, self.head_dim = tensor.shape
        self.device = tensor.device
        self.num_bytes = tensor.numel() * tensor.element_size()
        self._array = as_array(tensor) if self.device.type == "cpu" else None
        self._copier = CudaCopier(tensor) if self.device.type == "cuda" else None

    def read(self, block_ids: Sequence[int], start: int, end: int, out: torch.Tensor) -> None:
        """Copies token positions start … end-1 of the request with this block table.

        Args:
            block_ids: Block table from the request's first token on; covers `end` tokens.
            start: First token position.
            end: One past the last.
            out: Contiguous [num_layers, 2, num_kv_heads, end-start, head_dim] in the KV's dtype; written.

        Raises:
            ValueError: a range, a block id, a shape or the dtype does not fit; nothing was copied.
        """
        self._check(block_ids, start, end, out)
        if out.dtype != self.tensor.dtype:
            raise ValueError(f"out is {out.dtype}, the KV is {self.tensor.dtype}; read gives the KV's own dtype")
        if self._copier is not None:
            self._copier.read(block_ids, start, end, out)
        elif self._array is not None:
            self._read_array(self._array, block_ids, start, end, as_array(out))

    def write(self, block_ids: Sequence[int], start: int, end: int, data: torch.Tensor) -> None:
        """Stores token positions start … end-1 of the request with this block table; the reverse of `read`.

        Args:
            block_ids: As in `read`.
            start: First token position.
            end: One past the last.
            data: Contiguous [num_layers, 2, num_kv_heads, end-start, head_dim], float32, bfloat16 or float16;
                converted to the KV's dtype, to nearest.

        Raises:
            ValueError: a range, a block id, a shape or the dtype does not fit; nothing was stored.
        """
        self._check(block_ids, start, end, data)
        if self._copier is not None:
            self._copier.write(block_ids, start, end, data)
        elif self._array is not None:
            names = (str(dtype).removeprefix("torch.") for dtype in (data.dtype, self.tensor.dtype))
            self._write_array(self._array, block_ids, start, end, convert_floats(as_array(data), *names))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks (source, target); engine thread only. See `Engine.copy_blocks`."""
        if not pairs:
            return
        self._check_ids([block for pair in pairs for block in pair])
        sources, targets = (torch.tensor(side, device=self.device) for side in zip(*pairs, strict=True))
        self.tensor.index_copy_(3, targets, self.tensor.index_select(3, sources))

    def _read_array(self, kv: Array, block_ids: Sequence[int], start: int, end: int, out: Array) -> None:
        size = self.block_size
        if start % size == 0 and end % size == 0:
            ids = np.asarray(block_ids[start // size : end // size], dtype=np.intp)
            whole = out.reshape(self.num_layers, 2, self.num_kv_heads, len(ids), size, self.head_dim)
            # mode "clip" writes straight into out; "raise" would go through a buffer. Ids are checked already.
            np.take(kv, ids, axis=3, out=whole, mode="clip")
            return
        for block, inside, outside in _pieces(block_ids, start, end, size):
            out[:, :, :, outside] = kv[:, :, :, block, inside]

    def _write_array(self, kv: Array, block_ids: Sequence[int], start: int, end: int, data: Array) -> None:
        for block, inside, outside in _pieces(block_ids, start, end, self.block_size):
            kv[:, :, :, block, inside] = data[:, :, :, outside]

    def _check(self, block_ids: Sequence[int], start: int, end: int, tokens: torch.Tensor) -> None:
        covered = len(block_ids) * self.block_size
        if not 0 <= start < end <= covered:
            raise ValueError(f"tokens [{start}, {end}) are not in the {covered} that {len(block_ids)} blocks hold")
        wanted = (self.num_layers, 2, self.num_kv_heads, end - start, self.head_dim)
        if tuple(tokens.shape) != wanted or not tokens.is_contiguous():
            raise ValueError(f"the tensor is {tuple(tokens.shape)}, it must be {wanted} and contiguous")
        if tokens.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"the tensor is {tokens.dtype}; KV is float32, bfloat16 or float16")
        if self._array is not None and tokens.device.type != "cpu":
            raise ValueError(f"the tensor is on {tokens.device}, the KV on CPU; copy it to CPU first")
        self._check_ids(block_ids[start // self.block_size : -(-end // self.block_size)])

    def _check_ids(self, block_ids: Sequence[int]) -> None:
        if min(block_ids) < 0 or max(block_ids) >= self.num_blocks:
            raise ValueError(f"block ids {min(block_ids)} to {max(block_ids)} are not in [0, {self.num_blocks})")


def as_array(tensor: torch.Tensor) -> Array:
    """A CPU tensor's own memory as numpy; bfloat16 as the bit patterns, int16. No torch kernel runs."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _pieces(block_ids: Sequence[int], start: int, end: int, size: int) -> list[tuple[int, slice, slice]]:
    """(block, positions inside it, positions in the range) for each block that the range touches."""
    pieces: list[tuple[int, slice, slice]] = []
    for index in range(start // size, -(-end // size)):
        first, last = max(start, index * size), min(end, (index + 1) * size)
        pieces.append(
            (block_ids[index], slice(first - index * size, last - index * size), slice(first - start, last - start))
        )
    return pieces
