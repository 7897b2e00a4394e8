"""Memory that the ranks of a worker share: anonymous files, gone with the last process that has them."""

import math
import mmap
import os
from collections.abc import Sequence

import torch


def new_memory(name: str) -> int:
    """A new empty anonymous file; gives its descriptor. Unlike /dev/shm it knows no limit but memory itself."""
    return os.memfd_create(f"baton-{name}")


def map_tensor(descriptor: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor over a file's memory, which is made as large as it needs; zero where nobody wrote.

    The descriptor may be closed afterwards; the memory stays as long as a process has a tensor over it.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if os.fstat(descriptor).st_size < num_bytes:
        os.ftruncate(descriptor, num_bytes)
    return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=dtype).view(*shape)
