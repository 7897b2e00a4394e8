"""Converts arrays of floats between float32, bfloat16 and float16 without torch, on any thread.

numpy has no bfloat16, so here a bfloat16 array is its bit patterns as int16. Rounding is to nearest, ties to even;
overflow gives infinity, NaN stays NaN.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ARRAY_DTYPES: dict[str, npt.DTypeLike] = {"float32": np.float32, "bfloat16": np.int16, "float16": np.float16}


def convert_floats(values: Array, source: str, target: str) -> Array:
    """Values of dtype `source` as dtype `target` (names of torch dtypes); the same array where they are equal."""
    if source == target:
        return values
    wide = widen_bfloat16(values) if source == "bfloat16" else values.astype(np.float32, copy=False)
    if target == "bfloat16":
        return round_to_bfloat16(wide)
    with np.errstate(over="ignore"):
        return wide.astype(ARRAY_DTYPES[target], copy=False)


def widen_bfloat16(bits: Array) -> Array:
    """bfloat16 bit patterns to float32; exact."""
    wide = bits.view(np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def round_to_bfloat16(values: Array) -> Array:
    """float32 to bfloat16 bit patterns."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))
    rounded >>= 16
    # Adding may carry a NaN's mantissa into the sign; keep its top bits and make it quiet.
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16) | 0x40
    return rounded.astype(np.uint16).view(np.int16)
