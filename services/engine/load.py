"""Loads a checkpoint into a `transformers` model with its parts replaced.

Knows nothing of KV memory, steps or requests.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from services.common.config import ConfigError
from services.engine.attention.hook import IMPLEMENTATION, StepSlot, attach_slot, register_attention
from services.engine.config import EngineConfig
from services.engine.forward import Forward, choose_forward
from services.engine.modules import can_pack_linears, fast_linear, swap_modules
from services.engine.native.fusing import fuse_modules
from services.engine.native.kernels import DTYPES, Kernels
from services.engine.native.layer_stack import stack_layers
from services.engine.native.library import KernelsUnavailable
from services.engine.probe import ModelShape, probe_model
from services.engine.support import check_support, read_config
from services.engine.tensor_parallel.layers import GroupSlot, join_layers
from services.engine.tensor_parallel.plan import Shard
from services.engine.tensor_parallel.weights import load_shard, plan_of

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A rank's model ready to run, and what the engine must know of it; `shape` is that of the rank's part."""

    model: PreTrainedModel
    forward: Forward
    slot: StepSlot
    group_slot: GroupSlot
    config: PreTrainedConfig
    shape: ModelShape
    dtype: torch.dtype
    device: torch.device
    kernels: Kernels | None

    @property
    def facts(self) -> list[object]:
        """What must be equal on all ranks."""
        shape = self.shape
        return [shape.num_layers, shape.num_kv_heads, shape.head_dim, shape.vocab_size, dtype_name(self.dtype)]


def load_model(config: EngineConfig, progress: Progress, rank: int = 0) -> LoadedModel:
    """Loads a rank's part of the weights, swaps modules, and proves with two tokens that the model can run paged.

    Raises:
        ConfigError: the checkpoint or the device cannot be used.
    """
    shard = Shard(rank, config.tensor_parallel)
    device = choose_device(config.device)
    _check_built(config, device)
    model_config = read_config(config.checkpoint)
    check_support(model_config, config.checkpoint)
    dtype = choose_dtype(config.dtype, model_config, device)
    progress(f"loading {model_config.model_type} in {dtype_name(dtype)} on {device.type}")
    model = _load_weights(config.checkpoint, model_config, shard, dtype, device)
    slot = attach_slot(model)
    kernels = _load_kernels(config, dtype, device, progress)
    layers = probe_model(model, slot, device).layers
    fused = 0 if kernels is None else fuse_modules(model, slot, layers, kernels)
    group_slot = join_layers(model, plan_of(model_config, shard), shard)
    counts = swap_modules(model, fast_linear(device, dtype, kernels, config.quantization), kernels)
    is_stacked = kernels is not None and stack_layers(model, slot, kernels)
    progress(
        f"fused {fused} modules, packed {counts['linears']} linear layers, replaced {counts['norms']} norms, "
        f"decoder layers run {'in one call' if is_stacked else 'one by one'}"
    )
    shape = probe_model(model, slot, device)
    forward = choose_forward(model, slot)
    return LoadedModel(model, forward, slot, group_slot, model_config, shape, dtype, device, kernels)


def _check_built(config: EngineConfig, device: torch.device) -> None:
    """Refuses what is there for another kind of device only."""
    for setting, is_wanted, wanted, otherwise in (
        ("tensor_parallel_size", config.tensor_parallel > 1, "cpu", "set tensor_parallel_size to 1"),
        ("quantization", config.quantization != "none", "cpu", "set quantization to none"),
        ("cuda_graphs", config.cuda_graphs, "cuda", "turn cuda_graphs off"),
    ):
        if is_wanted and device.type != wanted:
            raise ConfigError(
                f"{setting} is built for {wanted}, the device is {device.type}; {otherwise}, or set device to {wanted}"
            )


def _load_kernels(config: EngineConfig, dtype: torch.dtype, device: torch.device, progress: Progress) -> Kernels | None:
    if device.type != "cpu" or dtype not in DTYPES or not config.native_kernels:
        return None
    try:
        return Kernels()
    except KernelsUnavailable as error:
        progress(f"computing without our own kernels, slower: {error}")
        return None


def choose_device(name: str) -> torch.device:
    """The device to run on.

    Raises:
        ConfigError: a CUDA device is asked for that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {name}, but torch sees {torch.cuda.device_count()} CUDA devices; use another device, "
            "or a torch built for CUDA"
        )
    return device


def choose_dtype(name: str, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """The dtype to compute in.

    auto takes the checkpoint's own, or float32 where it does not say, and on a CPU that is slow in it: float32 holds
    every value of the half-precision dtypes.

    Raises:
        ConfigError: the checkpoint's own is none that the engine computes in.
    """
    if name != "auto":
        return getattr(torch, name)
    own = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None) or torch.float32
    if own not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"the checkpoint's dtype is {own}; set dtype to float32, bfloat16 or float16")
    is_slow = device.type == "cpu" and not can_pack_linears(device, own)
    return torch.float32 if is_slow else own


def dtype_name(dtype: torch.dtype) -> str:
    """float32, bfloat16 or float16."""
    return str(dtype).removeprefix("torch.")


def _load_weights(
    checkpoint: Path, config: PreTrainedConfig, shard: Shard, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    register_attention()
    transformers_logging.disable_progress_bar()  # a server's log is no terminal
    try:
        loaded: Any = (
            load_shard(checkpoint, config, shard, dtype)
            if shard.degree > 1
            else AutoModelForCausalLM.from_pretrained(
                checkpoint,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigError(f"model {checkpoint}: its weights do not load ({error}); check the files") from error
    model: PreTrainedModel = loaded[0]
    _check_complete(checkpoint, loaded[1]["missing_keys"])
    if not model._can_set_attn_implementation():  # pyright: ignore[reportPrivateUsage] - no public question exists
        raise ConfigError(
            f"model {checkpoint}: {type(model).__name__} does not go through transformers' attention interface; "
            "use a model that does"
        )
    model.set_attn_implementation(IMPLEMENTATION)
    return model.to(device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]


def _check_complete(checkpoint: Path, missing: Collection[str]) -> None:
    """Refuses a checkpoint with holes: transformers would fill them with random numbers and only warn."""
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ConfigError(
            f"model {checkpoint}: lacks {len(missing)} weights of its architecture ({some}, …); its files are "
            "incomplete or belong to another config.json"
        )
