"""Decides how many KV blocks an engine gets.

Knows sizes, not tensors of a model. An explicit count wins; else the device's free memory and what the engine could
ever use decide.
"""

import os
from pathlib import Path

import torch

from services.common.config import ConfigError
from services.engine.config import EngineConfig

DEFAULT_CPU_BYTES = 4 << 30
CPU_SHARE = 0.4


def choose_num_blocks(
    config: EngineConfig, *, block_bytes: int, block_size: int, max_model_len: int, device: torch.device
) -> int:
    """KV blocks to allocate.

    Raises:
        ConfigError: not even one request of max_model_len tokens fits.
    """
    blocks_per_request = -(-max_model_len // block_size)
    blocks = config.num_blocks
    source = "num_blocks"
    if not blocks:
        budget, source = kv_budget(config, device)
        blocks = min(budget // block_bytes, config.max_num_seqs * blocks_per_request)
    if blocks < blocks_per_request:
        raise ConfigError(
            f"{source} gives {blocks} KV blocks of {block_size} tokens, one request of max_model_len {max_model_len} "
            f"needs {blocks_per_request} ({blocks_per_request * block_bytes >> 20} MiB); raise {source} or lower "
            "max_model_len"
        )
    return blocks


def kv_budget(config: EngineConfig, device: torch.device) -> tuple[int, str]:
    """Bytes for KV, and the setting that decides them."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - total * (1 - config.gpu_memory_utilization))), "gpu_memory_utilization"
    if config.cpu_kv_bytes:
        return config.cpu_kv_bytes, "cpu_kv_bytes"
    return min(DEFAULT_CPU_BYTES, int(available_cpu_bytes() * CPU_SHARE)), "cpu_kv_bytes"


def available_cpu_bytes(root: Path = Path("/")) -> int:
    """Memory that can still be taken: the machine's, or less where a control group limits this process."""
    found = [_machine_bytes(root / "proc/meminfo")]
    limit, used = (_number(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        found.append(max(0, limit - used))
    return min(found)


def _machine_bytes(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(path: Path) -> int | None:
    """The number in a control file; None where there is none, or "max" is."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
