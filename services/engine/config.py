"""What an engine is started with, as plain data.

Knows nothing of flags, files or environment: the process that owns the engine maps its own settings onto this.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from services.common.config import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "int8")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
ATTENTION_BACKENDS = ("auto", "native", "gather", "flash", "varlen")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Choices of one engine; 0 means that the engine chooses.

    Attributes:
        checkpoint: Directory with config.json and safetensors files.
        dtype: One of `DTYPES`; auto takes the checkpoint's own, or float32 on a CPU that is slow in that.
        device: auto, cpu, cuda or cuda:1 and so on; auto takes CUDA where there is one.
        attention: One of `ATTENTION_BACKENDS`; auto takes the fastest that can run here.
        block_size: Token positions in a KV block; 0 takes the attention backend's own preference.
        num_blocks: KV blocks; wins over every memory setting.
        max_model_len: Longest prompt plus output, in tokens; 0 takes the checkpoint's.
        max_num_seqs: Requests that run at once.
        max_num_batched_tokens: Tokens that one step may feed.
        cpu_kv_bytes: Memory for KV on CPU.
        gpu_memory_utilization: Share of the device's memory for weights, activations and KV together.
        num_threads: Threads of torch, of all ranks together; 0 leaves torch's own choice.
        tensor_parallel: Ranks, each a process of its own, that share the model.
        rank_cores: Cores of each rank; empty leaves them where the process is.
        rank_timeout_s: How long one rank waits for another in a step.
        native_kernels: Whether to build and use our own C++ kernels on CPU; without them everything goes to torch.
        quantization: One of `QUANTIZATIONS`; what weights are turned into as they are loaded.
        cuda_graphs: Whether steps that feed one token of each request are replayed from CUDA graphs.
    """

    checkpoint: Path
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    block_size: int = 0
    num_blocks: int = 0
    max_model_len: int = 0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    cpu_kv_bytes: int = 0
    gpu_memory_utilization: float = 0.9
    num_threads: int = 0
    tensor_parallel: int = 1
    rank_cores: tuple[tuple[int, ...], ...] = ()
    rank_timeout_s: float = 20.0
    native_kernels: bool = True
    quantization: str = "none"
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, DTYPES)
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"device is {self.device!r}; use auto, cpu, cuda, or cuda:1 and so on")
        _check_choice("attention", self.attention, ATTENTION_BACKENDS)
        _check_choice("quantization", self.quantization, QUANTIZATIONS)
        for name in ("block_size", "num_blocks", "max_model_len", "cpu_kv_bytes", "num_threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; use 0 (chosen automatically) or more")
        for name in ("max_num_seqs", "max_num_batched_tokens", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; use 1 or more")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization is {self.gpu_memory_utilization}; use a share in (0, 1]")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; use one of {', '.join(choices)}")
