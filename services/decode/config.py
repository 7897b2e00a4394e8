"""Settings of a decode process."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from services.common import ports
from services.common.settings import Port, WorkerSettings
from services.common.types import Tier
from services.kvtransfer.static_source import StaticWorker, parse_worker

PROG = "baton decode"
ENV_PREFIX = "BATON_DECODE_"


class DecodeSettings(WorkerSettings):
    """Takes the KV of prompts over and runs requests to their end; alone, it is a complete colocated worker."""

    port: Port = Field(ports.DECODE, description="Port of the gRPC services; 0 takes a free one.")
    metrics_port: Port = Field(
        ports.metrics_port(ports.DECODE), description="Port of Prometheus metrics over HTTP; 0 serves none."
    )
    role: Literal["decode", "colocated"] = Field(
        "decode", description="decode takes prompts over from prefill workers; colocated runs whole requests alone."
    )
    seats_ahead: int = Field(
        8, ge=0, le=4096, description="Requests beyond max_num_seqs whose prompts may run before a slot is free."
    )
    prefill_peers: str = Field(
        "",
        description="Prefill workers to keep channels to where there is no directory: host:port, or dns:host:port for "
        "all addresses behind a name, separated by commas; empty: a channel opens with the first handoff.",
    )
    default_deadline_s: float = Field(
        600.0, gt=0, le=86400, description="Seconds that a call without a deadline of its own may take."
    )
    max_unread_tokens: int = Field(
        8192, ge=16, description="Tokens that a slow reader may leave unread before its request ends."
    )

    @field_validator("prefill_peers")
    @classmethod
    def _check_peers(cls, value: str) -> str:
        _parse_peers(value)
        return value

    @model_validator(mode="after")
    def _check_membership(self) -> "DecodeSettings":
        if self.prefill_peers and self.directory:
            raise ValueError("prefill_peers and directory exclude each other; set one of them")
        return self

    @property
    def static_peers(self) -> tuple[StaticWorker, ...]:
        """The prefill workers given by hand, if any."""
        return _parse_peers(self.prefill_peers)

    @property
    def tier(self) -> Tier:
        """As what the worker registers."""
        return Tier(self.role)


def _parse_peers(text: str) -> tuple[StaticWorker, ...]:
    """Reads `host:port,dns:host:port`.

    Raises:
        ValueError: says what of it cannot be read.
    """
    return tuple(parse_worker(Tier.PREFILL, entry.strip()) for entry in text.split(",") if entry.strip())
