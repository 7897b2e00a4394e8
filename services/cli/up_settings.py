"""Settings of `baton up`, and what they mean for each process that it starts."""

import dataclasses
import shlex
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from services.cli.cluster_plan import RANKS_FLAG, WORKER_ROLES, ClusterSettings
from services.common.config import ConfigError, Settings
from services.common.rpc.security import ClientSecurity, new_client_security
from services.common.security_settings import SecuritySettings

_SEPARATE = "Further settings of the {} as name=value, separated by spaces, such as {}."


class LocalSettings(Settings):
    """What to start, and how it ends."""

    model: str = Field("demo", description="Checkpoint: demo (the shipped one), a directory or a Hugging Face hub id.")
    prefill: int = Field(1, ge=0, le=64, description="Prefill workers.")
    decode: int = Field(1, ge=0, le=64, description="Decode workers.")
    colocated: int = Field(0, ge=0, le=64, description="Workers that run whole requests alone.")
    frontend: int = Field(1, ge=0, le=16, description="Frontends.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is an NVIDIA GPU.")
    host: str = Field("127.0.0.1", description="Address that every process listens on.")
    port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the first frontend; 0 takes free ports for all; none: 9000 where that is free.",
    )
    prompt: str = Field("", description="Send this chat message once ready and show the answer.")
    once: bool = Field(False, description="Stop once ready and, with a prompt, answered.")
    verbose: bool = Field(False, description="Show what the processes log.")
    log_folder: str = Field(".baton/logs", description="Folder for the processes' logs, one file each.")
    ready_file: str = Field("", description="JSON file with the addresses of all processes, written once ready.")
    start_timeout_s: float = Field(300.0, gt=0, description="Seconds until every process must be ready.")
    drain_timeout_s: float = Field(5.0, ge=0, le=3600, description="Seconds that running requests get at the end.")
    served_model_name: str = Field("", description="Name that clients use; empty: that of the model.")
    dtype: str = Field("", description="Element type of weights and KV; empty: the worker's default.")
    max_model_len: int | None = Field(None, description="Longest prompt plus output in tokens.")
    max_num_seqs: int | None = Field(None, description="Slots of the running batch.")
    max_num_batched_tokens: int | None = Field(None, description="Most tokens in one forward pass.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of a GPU that its workers get together.")
    block_size: int | None = Field(None, description="Token positions in a KV block.")
    num_blocks: int | None = Field(None, description="KV blocks of each worker.")
    prefill_tensor_parallel: int = Field(
        1, ge=1, le=64, description="Processes that share the model in each prefill worker; they share its cores too."
    )
    decode_tensor_parallel: int = Field(
        1, ge=1, le=64, description="The same in each decode or colocated worker; the tiers need not agree."
    )
    prefill_args: str = Field("", description=_SEPARATE.format("prefill workers", "max-num-batched-tokens=512"))
    decode_args: str = Field("", description=_SEPARATE.format("decode and colocated workers", "max-num-seqs=16"))
    frontend_args: str = Field("", description=_SEPARATE.format("frontends", "log-level=debug"))


class UpSettings(SecuritySettings, LocalSettings):
    """Start a local cluster: a directory, prefill and decode workers and a frontend, one process each."""

    auth_token_file: str = Field(
        "", description="File with the tokens that clients of the frontends may show, one a line; empty: none needed."
    )


_TO_ALL = (*SecuritySettings.model_fields,)
_TO_WORKERS = (
    "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks",
)  # fmt: skip


def cluster_settings(settings: UpSettings, checkpoint: str, device: str) -> ClusterSettings:
    """What the settings ask of each process.

    Args:
        settings: as given.
        checkpoint: directory of the model, found once for all.
        device: cpu or cuda.

    Raises:
        ConfigError: there would be nothing to serve, or settings of a tier are not name=value.
    """
    counts = {role: getattr(settings, role) for role in (*WORKER_ROLES, "frontend")}
    if not settings.colocated and not (settings.prefill and settings.decode):
        raise ConfigError("nothing could be served: it takes prefill and decode workers, or colocated ones")
    named = {"model": checkpoint, "served-model-name": settings.served_model_name or settings.model.rstrip("/")}
    worker = named | spelt(settings, _TO_WORKERS)
    shared = spelt(settings, _TO_ALL)
    public = {"auth-token-file": settings.auth_token_file} if settings.auth_token_file else {}
    prefill_flags = _ranks(settings.prefill_tensor_parallel) | parse_flags("prefill_args", settings.prefill_args)
    decode_flags = _ranks(settings.decode_tensor_parallel) | parse_flags("decode_args", settings.decode_args)
    flags = {
        "kvtransfer": shared,
        "prefill": shared | worker | prefill_flags,
        "decode": shared | worker | decode_flags,
        "colocated": shared | worker | {"role": "colocated"} | decode_flags,
        "frontend": shared | public | named | parse_flags("frontend_args", settings.frontend_args),
    }
    return ClusterSettings(
        counts=counts,
        ports={} if settings.port is None else _ports(settings.port),
        flags=flags,
        host=settings.host,
        device=device,
        utilization=settings.gpu_memory_utilization,
        drain_timeout_s=settings.drain_timeout_s,
    )


def spelt(settings: UpSettings, names: Iterable[str]) -> dict[str, str]:
    """Flags for the settings of these names that are set; True stands alone."""
    chosen = {name.replace("_", "-"): getattr(settings, name) for name in names}
    given = {name: value for name, value in chosen.items() if value is not None and value is not False and value != ""}
    return {name: "" if value is True else str(value) for name, value in given.items()}


def client_security(settings: UpSettings) -> ClientSecurity:
    """What the launcher itself shows: it asks the frontends, as any client does, and everybody's health.

    Raises:
        ConfigError: a file is wrong.
    """
    files = dataclasses.replace(settings.cluster_files(), tokens=settings.auth_token_file)
    return new_client_security(files, settings.tls_server_name)


def parse_flags(setting: str, text: str) -> dict[str, str]:
    """Reads `name=value name=value`; quotes protect spaces, leading dashes are allowed.

    Raises:
        ConfigError: a word is not name=value; names the setting.
    """
    flags: dict[str, str] = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not name.strip("-") or not equals:
            raise ConfigError(f"{setting}: {word!r} is not name=value")
        flags[name.lstrip("-").replace("_", "-")] = value
    return flags


def _ranks(degree: int) -> dict[str, str]:
    return {RANKS_FLAG: str(degree)} if degree > 1 else {}


def _ports(first_frontend: int) -> dict[str, int]:
    """Where the ports begin: a given frontend port leaves the others at their defaults, 0 frees them all."""
    if first_frontend:
        return {"frontend": first_frontend}
    return dict.fromkeys((*WORKER_ROLES, "frontend", "kvtransfer"), 0)
