"""Hashes what travels on a channel.

XXH3-64 (github.com/Cyan4973/xxHash) detects accidents, not attacks.
"""

import numpy as np
import torch
import xxhash
from torch import Tensor


def checksum_of(data: Tensor) -> int:
    """XXH3-64 of the bytes of a contiguous uint8 tensor; bytes on a device are copied to the host first."""
    return xxhash.xxh3_64_intdigest(data.cpu().numpy().data)


def probe_bytes(num_bytes: int, epoch: int, proof: bytes) -> bytes:
    """What a probe holds: the source's proof, then a pattern that differs from epoch to epoch."""
    pattern = ((np.arange(num_bytes) * 31 + epoch * 17 + 7) % 251).astype(np.uint8)
    return (proof + pattern.tobytes()[len(proof) :])[:num_bytes]


def write_bytes(data: Tensor, content: bytes) -> None:
    """Fills a uint8 tensor with as many bytes as it has."""
    source = np.frombuffer(content, dtype=np.uint8)
    if data.device.type == "cpu":
        data.numpy()[:] = source  # no torch operation: it would start a second OpenMP pool on this thread
    else:
        data.copy_(torch.from_numpy(source.copy()))


def read_bytes(data: Tensor) -> bytes:
    """The bytes of a contiguous uint8 tensor."""
    return data.cpu().numpy().tobytes()
