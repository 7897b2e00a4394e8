"""Settings of the public API: who may use it, and how much of it."""

import dataclasses

from pydantic import Field, model_validator

from services.common.rpc.limits import ServerLimits
from services.common.rpc.security import SecurityFiles, ServerSecurity, server_security
from services.common.settings import ProcessSettings


class PublicSettings(ProcessSettings):
    """Who may use the public API, and how much of it."""

    max_streams_per_connection: int = Field(
        1024, ge=1, le=2**20, description="Calls at once on one connection; a client waits with more."
    )
    max_connections: int = Field(4096, ge=0, le=2**20, description="Open gRPC connections; 0: no limit.")
    max_connection_idle_s: float = Field(
        600.0, ge=0, le=86400, description="Seconds after which a connection without calls is closed; 0: never."
    )
    max_connection_age_s: float = Field(
        3600.0, ge=0, le=86400, description="Seconds after which a client is asked to connect anew; 0: never."
    )
    max_requests_per_s: float = Field(
        0.0, ge=0, le=1e6, description="Calls a second of one caller (token, else address); 0: no limit."
    )
    request_burst: int = Field(
        32, ge=1, le=2**20, description="Calls at once of one caller, where its rate is limited."
    )
    slow_reader_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds that a client may leave its stream unread; then it is ended."
    )
    auth_token_file: str = Field(
        "", description="File with the tokens that clients may show, one a line; empty: they need none."
    )
    public_tls_cert: str = Field("", description="Certificate of the public API; empty: that of the process.")
    public_tls_key: str = Field("", description="Its key.")
    public_tls_ca: str = Field("", description="Authorities of clients' certificates; empty: those of the process.")

    @model_validator(mode="after")
    def _check_public_tls(self) -> "PublicSettings":
        if bool(self.public_tls_cert) is not bool(self.public_tls_key):
            raise ValueError("public_tls_cert and public_tls_key belong together; set both")
        return self

    def public_security(self) -> ServerSecurity:
        """What the public API asks of its clients.

        Raises:
            ConfigError: a file is wrong.
        """
        files = SecurityFiles(
            cert=self.public_tls_cert or self.tls_cert,
            key=self.public_tls_key or self.tls_key,
            ca=self.public_tls_ca or self.tls_ca,
            tokens=self.auth_token_file,
        )
        return server_security(files, require_client_cert=self.tls_require_client_cert)

    def server_limits(self) -> ServerLimits:
        """What the public API allows its clients."""
        limits = super().server_limits()
        return dataclasses.replace(limits, requests_per_s=self.max_requests_per_s, request_burst=self.request_burst)
