"""Staging: the buffers between KV blocks and the network.

A pool belongs to one channel and dies with it, so that whatever a dying peer still writes goes nowhere. Knows bytes
and shapes, neither sockets nor tickets.
"""

import torch
from torch import Tensor

from services.common.types import KvLayout

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def token_bytes(layout: KvLayout) -> int:
    """Bytes of KV that one token position takes on the wire."""
    return layout.token_elements * _DTYPES[layout.dtype].itemsize


def as_kv(data: Tensor, layout: KvLayout) -> Tensor:
    """Sees a contiguous uint8 tensor as KV: [num_layers, 2, num_kv_heads, tokens, head_dim] in the layout's dtype."""
    return data.view(_DTYPES[layout.dtype]).view(layout.num_layers, 2, layout.num_kv_heads, -1, layout.head_dim)


class Staging:
    """Equal buffers of `buffer_bytes`, made on first use, `max_bytes` of them at most.

    `is_pinned` page-locks those on the host: a GPU then copies between them and its memory without a detour.

    Thread: owned by the channel's thread; `stats` may be read from any.
    """

    def __init__(self, buffer_bytes: int, max_bytes: int, *, is_pinned: bool = False) -> None:
        self.buffer_bytes = buffer_bytes
        self.device = torch.device("cpu")
        self._is_pinned = is_pinned
        self._max_buffers = max(1, max_bytes // buffer_bytes)
        self._num_buffers = 0
        self._free: list[Tensor] = []
        self._taken: dict[int, Tensor] = {}

    @property
    def max_buffers(self) -> int:
        """Messages that can be staged at the same time."""
        return self._max_buffers

    def take(self, num_bytes: int) -> Tensor:
        """A buffer's first `num_bytes` bytes, content undefined.

        Raises:
            ValueError: the message is larger than a buffer, or every buffer is taken: a bug of the caller.
        """
        if num_bytes > self.buffer_bytes:
            raise ValueError(f"{num_bytes} bytes do not fit a staging buffer of {self.buffer_bytes}")
        if not self._free:
            if self._num_buffers >= self._max_buffers:
                raise ValueError(f"all {self._max_buffers} staging buffers are taken")
            self._free.append(self._make())
            self._num_buffers += 1
        buffer = self._free.pop()
        self._taken[buffer.data_ptr()] = buffer
        return buffer[:num_bytes]

    def _make(self) -> Tensor:
        is_pinned = self._is_pinned and self.device.type == "cpu"
        return torch.empty(self.buffer_bytes, dtype=torch.uint8, device=self.device, pin_memory=is_pinned)

    def give(self, data: Tensor) -> None:
        """Takes back what `take` gave."""
        self._free.append(self._taken.pop(data.data_ptr()))

    def close(self) -> None:
        """Drops every buffer."""
        self._free.clear()
        self._taken.clear()
        self._num_buffers = 0

    def stats(self) -> dict[str, int]:
        """Bytes that exist, and buffers that are taken."""
        return {"staging_bytes": self._num_buffers * self.buffer_bytes, "staging_taken": len(self._taken)}
