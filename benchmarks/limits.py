"""What the machine itself can do through torch, measured beside what is compared with it."""

import statistics
import time
from collections.abc import Callable

import torch

_REPEATS = 5
_LEAST_S = 0.01  # of one timed stretch, so that the clock and the call count for nothing
_CPU_GEMM = 2048
_CUDA_GEMM = 8192


def read_bandwidth(num_bytes: int, device: torch.device) -> float:
    """Bytes per second of summing that many bytes again and again: what fits into a cache is read from there."""
    data = torch.ones(max(1, num_bytes // 4), dtype=torch.float32, device=device)
    return data.numel() * 4 / _seconds(lambda: data.sum(), device)


def gemm_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of one large square matrix product."""
    size = _CUDA_GEMM if device.type == "cuda" else _CPU_GEMM
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: torch.nn.functional.linear(left, right), device)


@torch.inference_mode()
def _seconds(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Median time of one call, after a first one that does not count."""
    once = _stretch(work, 1, device)
    once = min(once, _stretch(work, 1, device))
    calls = max(1, int(_LEAST_S / once)) if once > 0 else 1000
    return statistics.median(_stretch(work, calls, device) for _ in range(_REPEATS)) / calls


def _stretch(work: Callable[[], torch.Tensor], calls: int, device: torch.device) -> float:
    _finish(device)
    began = time.perf_counter()
    for _ in range(calls):
        work()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
