"""Settings by which every process secures its connections; see docs/security.md."""

from pydantic import Field, model_validator

from services.common.config import Settings
from services.common.rpc.security import (
    ClientSecurity,
    SecurityFiles,
    ServerSecurity,
    new_client_security,
    server_security,
)


class SecuritySettings(Settings):
    """How a process shows who it is, and how it knows its peers."""

    tls_cert: str = Field(
        "", description="PEM file with this process's certificate and those below its authority; empty: no TLS."
    )
    tls_key: str = Field("", description="PEM file with the certificate's key, not encrypted.")
    tls_ca: str = Field("", description="PEM file with the authorities that peers must have their certificates from.")
    tls_server_name: str = Field(
        "", description="Name that the certificates of peers must carry; empty: the host that is connected to."
    )
    tls_require_client_cert: bool = Field(False, description="Serve only who shows a certificate of an authority.")
    cluster_token_file: str = Field(
        "",
        description="File with the deployment's tokens, one a line: clients of this process show the first one, its "
        "services (but the public API) take any.",
    )

    @model_validator(mode="after")
    def _check_tls(self) -> "SecuritySettings":
        if bool(self.tls_cert) is not bool(self.tls_key):
            raise ValueError("tls_cert and tls_key belong together; set both")
        return self

    def cluster_files(self) -> SecurityFiles:
        """The files of the control plane."""
        return SecurityFiles(cert=self.tls_cert, key=self.tls_key, ca=self.tls_ca, tokens=self.cluster_token_file)

    def server_security(self) -> ServerSecurity:
        """What this process's services ask of their callers.

        Raises:
            ConfigError: a file is wrong.
        """
        return server_security(self.cluster_files(), require_client_cert=self.tls_require_client_cert)

    def client_security(self) -> ClientSecurity:
        """What this process shows to its peers.

        Raises:
            ConfigError: a file is wrong.
        """
        return new_client_security(self.cluster_files(), self.tls_server_name)
