"""How much of a checkpoint a forward pass touches, from the headers of its safetensors files; loads no weight.

Counts a dense model: of a mixture of experts, which reads only some matrices for each token, it counts them all.
"""

import json
import math
import pathlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCounts:
    """Elements: `matrices` multiply every token, `head` multiplies tokens whose logits are wanted."""

    matrices: int
    head: int


def count_weights(checkpoint: pathlib.Path, vocab_size: int) -> WeightCounts:
    """Counts the weights of a checkpoint.

    Raises:
        FileNotFoundError: it has no safetensors files.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"there are no safetensors files in {checkpoint}")
    return count_shapes((shape for file in files for shape in _shapes(file)), vocab_size)


def count_shapes(shapes: Iterable[tuple[int, ...]], vocab_size: int) -> WeightCounts:
    """Sorts the shapes of all weights: vectors count for nothing, a row for each token is the embedding or the head.

    The embedding is looked up, not multiplied; where it is tied, its one copy is the head.
    """
    matrices = head = 0
    for shape in shapes:
        if len(shape) == 2 and shape[0] == vocab_size:
            head = math.prod(shape)
        elif len(shape) >= 2:
            matrices += math.prod(shape)
    return WeightCounts(matrices=matrices, head=head)


def _shapes(file: pathlib.Path) -> Iterator[tuple[int, ...]]:
    with file.open("rb") as stream:
        (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
        header = json.loads(stream.read(length))
    return (tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
