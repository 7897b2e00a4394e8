"""Settings of a prefill process."""

from pydantic import Field

from services.common import ports
from services.common.settings import Port, WorkerSettings

PROG = "baton prefill"
ENV_PREFIX = "BATON_PREFILL_"


class PrefillSettings(WorkerSettings):
    """Runs prompts to their first token and hands their KV over."""

    port: Port = Field(ports.PREFILL, description="Port of the gRPC services; 0 takes a free one.")
    metrics_port: Port = Field(
        ports.metrics_port(ports.PREFILL), description="Port of Prometheus metrics over HTTP; 0 serves none."
    )
    prompts_ahead: int = Field(
        4, ge=0, le=4096, description="Prompts that may run before a decode worker has a seat for them and asks."
    )
    default_deadline_s: float = Field(
        600.0, gt=0, le=86400, description="Seconds that a call without a deadline of its own may take."
    )
