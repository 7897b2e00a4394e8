"""Settings of the directory process."""

from pydantic import Field

from services.common import ports
from services.common.settings import Port, ProcessSettings

PROG = "baton-kvtransfer"
ENV_PREFIX = "BATON_KVTRANSFER_"

DEFAULT_LEASE_S = 6.0


class DirectorySettings(ProcessSettings):
    """The directory: tells workers and frontends who is alive and what it serves."""

    port: Port = Field(ports.KVTRANSFER, description="Port of the gRPC services; 0 takes a free one.")
    metrics_port: Port = Field(
        ports.metrics_port(ports.KVTRANSFER), description="Port of Prometheus metrics over HTTP; 0 serves none."
    )
    lease_s: float = Field(
        DEFAULT_LEASE_S, ge=0.2, le=600, description="Seconds without renewal after which a worker is dropped."
    )
