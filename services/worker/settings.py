"""Maps the settings of a worker process onto the engine's and the transfer library's own."""

from typing import TypeVar

from services.common.checkpoint import resolve_checkpoint
from services.common.settings import WorkerSettings
from services.engine.config import EngineConfig
from services.kvtransfer.config import TransferConfig
from services.worker.placement import RankCores

S = TypeVar("S", bound=WorkerSettings)


def carried_over(settings: WorkerSettings, settings_class: type[S], **changes: object) -> S:
    """The settings of another tier's process: what both have is kept, the rest takes its defaults or `changes`."""
    shared = settings_class.model_fields.keys() & type(settings).model_fields.keys()
    return settings_class.model_validate({**{name: getattr(settings, name) for name in shared}, **changes})


def engine_config(settings: WorkerSettings, rank_cores: RankCores = ()) -> EngineConfig:
    """What the engine is started with; `rank_cores` are those of each rank where several share the model.

    Raises:
        ConfigError: there is no such checkpoint, or a choice that the engine does not have.
    """
    return EngineConfig(
        checkpoint=resolve_checkpoint(settings.model),
        dtype=settings.dtype,
        device=settings.device,
        attention=settings.attention_backend,
        block_size=settings.block_size,
        num_blocks=settings.num_blocks,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        cpu_kv_bytes=settings.cpu_kv_bytes,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        num_threads=settings.threads,
        tensor_parallel=settings.tensor_parallel_size,
        rank_cores=rank_cores,
        rank_timeout_s=settings.rank_timeout_s,
        native_kernels=settings.native_kernels,
        quantization=settings.quantization,
        cuda_graphs=settings.cuda_graphs,
    )


def transfer_config(settings: WorkerSettings, device: str = "cpu") -> TransferConfig:
    """How KV leaves and enters the process; `device` is the type of the one that has it."""
    return TransferConfig(
        kv_host=settings.kv_host or settings.advertised_host,
        checksum=settings.kv_checksum,
        lease_s=settings.kv_lease_s,
        probe_interval_s=settings.kv_probe_interval_s,
        operation_floor_s=settings.kv_operation_floor_s,
        reservation_s=settings.kv_reservation_s,
        pin_staging=device == "cuda",
    )


def transports(settings: WorkerSettings, device: str) -> tuple[str, ...]:
    """Transports that the worker offers, best first."""
    if settings.kv_transport != "auto":
        return (settings.kv_transport,)
    return ("nccl", "gloo") if device == "cuda" else ("gloo",)
