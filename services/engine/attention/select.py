"""Chooses the attention backend for a device, a dtype and a model's layers, with a reason where none fits.

Knows what each backend can do; imports the CUDA ones only where they are used.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.common.config import ConfigError
from services.engine.attention.gather import GatherAttention
from services.engine.attention.interface import AttentionBackend, LayerOptions
from services.engine.attention.native import NativeAttention
from services.engine.native.kernels import DTYPES, Kernels

CPU_BLOCK_SIZE = 16
FLASH_PAGE = 256
VARLEN_BLOCK_SIZE = 128


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend's name, and why each faster one was passed over."""

    name: str
    passed_over: tuple[str, ...]


def choose_backend(
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[LayerOptions],
    block_size: int,
    kernels: Kernels | None = None,
) -> BackendChoice:
    """The backend asked for, or the fastest that can run; `kernels` are our own for the CPU, where there are any.

    Raises:
        ConfigError: the one asked for cannot; says why.
    """
    faster = ("flash", "varlen") if device.type == "cuda" else ("native",)
    reasons: list[str] = []
    for name in (wanted,) if wanted != "auto" else (*faster, "gather"):
        reason = refusal(name, device, dtype, layers, block_size, kernels)
        if reason is None:
            return BackendChoice(name, tuple(reasons))
        reasons.append(f"{name}: {reason}")
    raise ConfigError(f"attention cannot be {'; '.join(reasons)}; use attention auto, or change dtype or device")


def refusal(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[LayerOptions],
    block_size: int,
    kernels: Kernels | None = None,
) -> str | None:
    """Why a backend cannot run, or None; block_size 0 is not chosen yet."""
    if name == "gather":
        return None
    if name == "native":
        return _native_refusal(device, dtype, kernels)
    if device.type != "cuda":
        return "it needs a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bfloat16 or float16 only"
    if name == "varlen":
        return _varlen_refusal(device, layers)
    if not _is_installed("flash_attn"):
        return "flash-attn is not installed"
    return None if block_size % FLASH_PAGE == 0 else f"its blocks are multiples of {FLASH_PAGE} tokens"


def _native_refusal(device: torch.device, dtype: torch.dtype, kernels: Kernels | None) -> str | None:
    if device.type != "cpu" or dtype not in DTYPES:
        return "it computes on CPU, in float32 or bfloat16 only"
    return "there are no kernels of our own" if kernels is None else None


def _varlen_refusal(device: torch.device, layers: Sequence[LayerOptions]) -> str | None:
    if any(layer.softcap for layer in layers):
        return "it has no logit softcapping"
    if paged_flash_module(device) is None:
        return "its block tables need flash-attn 3 on Hopper (compute capability 9) or flash-attn 4 on Blackwell (10)"
    return None


def paged_flash_module(device: torch.device) -> str | None:
    """Which of torch's flash implementations takes block tables on this device, FA3 or FA4; None where none does."""
    major, _ = torch.cuda.get_device_capability(device)
    if major == 9 and _is_installed("flash_attn_interface"):
        return "FA3"
    return "FA4" if major == 10 and _is_installed("flash_attn.cute") else None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def is_capturable(name: str) -> bool:
    """Whether a backend's kernels can be captured as a CUDA graph; gather chooses shapes on the host, by lengths."""
    return name in ("flash", "varlen")


def default_block_size(name: str) -> int:
    """The block size a backend works best with."""
    return {"flash": FLASH_PAGE, "varlen": VARLEN_BLOCK_SIZE}.get(name, CPU_BLOCK_SIZE)


def make_backend(name: str, kv: torch.Tensor, kernels: Kernels | None = None) -> AttentionBackend:
    """The backend over one KV tensor [num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim]."""
    if name == "flash":
        from services.engine.attention.flash import FlashAttention

        return FlashAttention(kv)
    if name == "varlen":
        from services.engine.attention.varlen import VarlenAttention

        return VarlenAttention(kv, paged_flash_module(kv.device) or "FA3")
    return NativeAttention(kv, kernels) if name == "native" and kernels is not None else GatherAttention(kv)
