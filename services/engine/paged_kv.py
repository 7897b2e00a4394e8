"""The KV memory of one engine, and the only way KV gets in or out of it besides attention.

`read` and `write` move token ranges for handoffs and may run on any thread, on blocks that no step writes meanwhile. On
CPU they go through numpy: a torch operation on a second thread would start a second OpenMP pool. Where ranks share the
model, each has a tensor of its own for its heads, and whoever reads or writes here sees all heads. Knows nothing of who
holds which block.
"""

from collections.abc import Sequence

import numpy as np
import torch

from services.engine.cuda_copy import CudaCopier
from services.engine.float_bits import Array, convert_floats


class PagedKv:
    """Tensors [num_layers, 2, heads, num_blocks, block_size, head_dim] (keys are plane 0), one for each rank.

    A rank's tensor has its equal share of the heads, in order; with one rank it has all `num_kv_heads`. Several are
    possible on CPU alone.
    """

    def __init__(self, *ranks: torch.Tensor) -> None:
        self.tensor = ranks[0]
        self.num_layers, _, heads, self.num_blocks, self.block_size, self.head_dim = self.tensor.shape
        self.num_kv_heads = heads * len(ranks)
        self.device = self.tensor.device
        self.num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in ranks)
        self._ranks = ranks
        self._arrays = [as_array(tensor) for tensor in ranks] if self.device.type == "cpu" else []
        self._copier = CudaCopier(self.tensor) if self.device.type == "cuda" else None

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
            return
        for array, tokens in zip(self._arrays, self._by_rank(as_array(out)), strict=True):
            self._read_array(array, block_ids, start, end, tokens)

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
            return
        names = (str(dtype).removeprefix("torch.") for dtype in (data.dtype, self.tensor.dtype))
        converted = convert_floats(as_array(data), *names)
        for array, tokens in zip(self._arrays, self._by_rank(converted), strict=True):
            self._write_array(array, block_ids, start, end, tokens)

    def mark(self) -> None:
        """Reads and writes wait for what the engine was told to compute so far; on its thread, after each step."""
        if self._copier is not None:
            self._copier.mark()

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks (source, target); engine thread only. See `Engine.copy_blocks`."""
        if not pairs:
            return
        self._check_ids([block for pair in pairs for block in pair])
        sources, targets = (torch.tensor(side, device=self.device) for side in zip(*pairs, strict=True))
        for tensor in self._ranks:
            tensor.index_copy_(3, targets, tensor.index_select(3, sources))
        self.mark()

    def _by_rank(self, tokens: Array) -> list[Array]:
        """Each rank's heads of [num_layers, 2, num_kv_heads, T, head_dim]; views."""
        heads = self.num_kv_heads // len(self._arrays)
        return [tokens[:, :, first : first + heads] for first in range(0, self.num_kv_heads, heads)]

    def _read_array(self, kv: Array, block_ids: Sequence[int], start: int, end: int, out: Array) -> None:
        size = self.block_size
        if start % size == 0 and end % size == 0:
            ids = np.asarray(block_ids[start // size : end // size], dtype=np.intp)
            # mode "clip" writes straight into out; "raise" would go through a buffer. Ids are checked already.
            for blocks, tokens in _contiguous(kv, out):
                whole = tokens.reshape(*tokens.shape[:-2], len(ids), size, self.head_dim)
                np.take(blocks, ids, axis=-3, out=whole, mode="clip")
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
        if self._arrays and tokens.device.type != "cpu":
            raise ValueError(f"the tensor is on {tokens.device}, the KV on CPU; copy it to CPU first")
        self._check_ids(block_ids[start // self.block_size : -(-end // self.block_size)])

    def _check_ids(self, block_ids: Sequence[int]) -> None:
        if min(block_ids) < 0 or max(block_ids) >= self.num_blocks:
            raise ValueError(f"block ids {min(block_ids)} to {max(block_ids)} are not in [0, {self.num_blocks})")


def as_array(tensor: torch.Tensor) -> Array:
    """A CPU tensor's own memory as numpy; bfloat16 as the bit patterns, int16. No torch kernel runs."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _contiguous(kv: Array, tokens: Array) -> list[tuple[Array, Array]]:
    """KV and tokens in parts that lie in one piece: all, or layer by layer, keys and values apart."""
    if tokens.flags.c_contiguous:
        return [(kv, tokens)]
    return [(kv[place], tokens[place]) for place in np.ndindex(*tokens.shape[:2])]


def _pieces(block_ids: Sequence[int], start: int, end: int, size: int) -> list[tuple[int, slice, slice]]:
    """(block, positions inside it, positions in the range) for each block that the range touches."""
    pieces: list[tuple[int, slice, slice]] = []
    for index in range(start // size, -(-end // size)):
        first, last = max(start, index * size), min(end, (index + 1) * size)
        pieces.append(
            (block_ids[index], slice(first - index * size, last - index * size), slice(first - start, last - start))
        )
    return pieces
