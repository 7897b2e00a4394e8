"""Settings that several processes share; each process subclasses what it needs and sets its own ports.

`ProcessSettings` is for any process, `MemberSettings` for those that use the directory, `QueueSettings` for those in
which requests wait, `WorkerSettings` for prefill and decode workers. Flags of the engine are named as in vLLM. Knows
nothing of the engine itself.
"""

import re
import socket
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from services.common.config import Settings
from services.common.ports import reachable_host
from services.common.rpc.limits import DEFAULT_MESSAGE_BYTES, MAX_CONCURRENT_RPCS, ServerLimits
from services.common.security_settings import SecuritySettings

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_bytes(value: object) -> object:
    """Reads "512MiB", "4 GiB" or plain bytes; anything but text is left to pydantic."""
    if not isinstance(value, str):
        return value
    match = _BYTES.fullmatch(value.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ValueError("must be a number of bytes, or end in KiB, MiB, GiB or TiB")
    return int(float(match[1]) * unit)


ByteCount = Annotated[int, BeforeValidator(parse_bytes)]
Port = Annotated[int, Field(ge=0, le=65535)]


class ListeningSettings(Settings):
    """Where a process listens, and what it allows those who connect."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: Port = Field(0, description="Port of the gRPC services; 0 takes a free one.")
    advertise_host: str = Field("", description="Host that others are told to connect to; empty derives it from host.")
    metrics_port: Port = Field(0, description="Port of Prometheus metrics over HTTP; 0 serves none.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Log lines for people (console) or machines (json); auto decides by the terminal."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds that running work gets to finish after SIGTERM."
    )
    otlp_endpoint: str = Field("", description="OTLP/gRPC endpoint for traces, such as http://host:4317; empty: none.")
    max_message_bytes: ByteCount = Field(
        DEFAULT_MESSAGE_BYTES, ge=2**16, le=2**30, description="Largest gRPC message sent or accepted."
    )
    max_concurrent_rpcs: int = Field(
        MAX_CONCURRENT_RPCS, ge=1, le=2**20, description="Calls that are served at once; more are refused."
    )
    max_streams_per_connection: int = Field(
        MAX_CONCURRENT_RPCS, ge=1, le=2**20, description="Calls at once on one connection; a client waits with more."
    )
    max_connections: int = Field(0, ge=0, le=2**20, description="Open gRPC connections; 0: no limit.")
    max_connection_idle_s: float = Field(
        0.0, ge=0, le=86400, description="Seconds after which a connection without calls is closed; 0: never."
    )
    max_connection_age_s: float = Field(
        0.0, ge=0, le=86400, description="Seconds after which a client is asked to connect anew; 0: never."
    )
    max_connection_grace_s: float = Field(
        600.0, gt=0, le=86400, description="Seconds that calls get to end on a connection that has reached its age."
    )

    @property
    def advertised_host(self) -> str:
        """Host under which others reach this process."""
        return self.advertise_host or reachable_host(self.host)

    def server_limits(self) -> ServerLimits:
        """What this process's server allows."""
        return ServerLimits(
            max_message_bytes=self.max_message_bytes,
            max_concurrent_rpcs=self.max_concurrent_rpcs,
            max_streams=self.max_streams_per_connection,
            max_connections=self.max_connections,
            idle_s=self.max_connection_idle_s,
            age_s=self.max_connection_age_s,
            age_grace_s=self.max_connection_grace_s,
        )


class ProcessSettings(SecuritySettings, ListeningSettings):
    """Settings of any Baton process."""


class MemberSettings(ProcessSettings):
    """Settings of a process that uses the directory."""

    directory: str = Field(
        "", description="host:port of the kvtransfer directory; empty: none, peers are configured by hand."
    )


class QueueSettings(MemberSettings):
    """Settings of a process in which requests queue."""

    queue_ttl_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds that a request may wait here for its turn; then it is turned away."
    )
    priority_aging_s: float = Field(
        10.0, gt=0, le=3600, description="Seconds of waiting that are worth one priority class."
    )


class WorkerSettings(QueueSettings):
    """Settings of a prefill or decode worker."""

    drain_move_after_s: float = Field(
        3600.0,
        ge=0,
        le=3600,
        description="Seconds after which a draining worker sends what still runs on to other workers; at the latest "
        "5 s before its drain timeout, or at half of one that is shorter than 10 s.",
    )
    worker_id: str = Field(
        "", max_length=128, description="Name, unique in the deployment; empty: made of tier, host name and port."
    )
    model: str = Field("", description="Checkpoint: directory or hub id; empty takes the demo checkpoint.")
    served_model_name: str = Field("", max_length=256, description="Name that clients use; empty: that of the model.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="Element type of weights and KV; auto: the checkpoint's, float32 on a CPU without bfloat16.",
    )
    quantization: Literal["none", "int8"] = Field(
        "none",
        description="int8: weights are turned into int8 as they are loaded, activations as they come; on CPU. The same "
        "for all workers of a model.",
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...; auto takes CUDA where there is one.")
    attention_backend: str = Field("auto", description="Attention backend; auto takes the fastest that is installed.")
    native_kernels: bool = Field(
        True, description="Build our own C++ kernels for this CPU at the first start and use them; else all is torch."
    )
    cuda_graphs: bool = Field(
        False, description="Replay decode steps as CUDA graphs, where the attention backend allows it; CUDA only."
    )
    block_size: int = Field(
        0, ge=0, le=1024, description="Token positions in a KV block; 0: what the attention backend prefers, 16 on CPU."
    )
    num_blocks: int = Field(0, ge=0, description="KV blocks; 0 derives them from the memory settings.")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of the device's memory for weights, activations and KV together."
    )
    cpu_kv_bytes: ByteCount = Field(
        2**29, ge=2**16, description="Memory for KV where the device is the CPU; KiB, MiB and GiB are understood."
    )
    max_model_len: int = Field(0, ge=0, description="Longest prompt plus output in tokens; 0: what the model allows.")
    max_num_seqs: int = Field(64, ge=1, le=4096, description="Slots of the running batch.")
    max_num_batched_tokens: int = Field(2048, ge=1, description="Most tokens in one forward pass.")
    enable_prefix_caching: bool = Field(True, description="Reuse the KV of equal prompt prefixes.")
    weight: float = Field(
        1.0, gt=0, le=1000, description="Share of its tier's work that the worker should get, relative to the others."
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads for computing on CPU; 0: one for each core it may use.")
    cpus: str = Field("", description="Cores to run on, such as 0,2-5; empty: all.")
    tensor_parallel_size: int = Field(
        1, ge=1, le=64, description="Processes that share the model, its KV heads, cores and threads; CPU only."
    )
    rank_timeout_s: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="Seconds that one of the processes which share a model waits for another in a step; then the "
        "worker ends.",
    )
    engine_stall_s: float = Field(
        60.0, ge=0, le=86400, description="Seconds in one step after which the worker is not live any more; 0 never."
    )
    max_queued_requests: int = Field(1024, ge=1, description="Requests that may wait; more are refused.")
    max_queued_tokens: int = Field(2**20, ge=1, description="Prompt tokens that may wait; more are refused.")
    kv_host: str = Field("", description="Address of the data connections between workers; empty: the advertised host.")
    kv_transport: Literal["auto", "gloo", "nccl"] = Field("auto", description="What carries KV between workers.")
    kv_checksum: bool = Field(True, description="Verify every KV message by checksum.")
    kv_probe_interval_s: float = Field(
        2.0, ge=0, le=3600, description="Seconds without KV after which a channel is tried out; 0 never."
    )
    kv_operation_floor_s: float = Field(
        1.5,
        gt=0,
        le=3600,
        description="Seconds that a KV message which was announced may take, besides what its bytes need at 10 MB/s; "
        "then its channel is given up.",
    )
    kv_lease_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds that a finished prompt's KV is kept for a sink that does not ask."
    )
    kv_reservation_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds that blocks reserved for a prompt's KV wait for more of it; longer than any chunk takes.",
    )

    def worker_name(self, tier: str, port: int) -> str:
        """The worker's id; made of tier, host name and bound port where none is configured."""
        return self.worker_id or f"{tier}-{socket.gethostname()}-{port}"
