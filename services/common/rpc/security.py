"""How this process secures its connections: what its servers ask for, and what its clients show.

A server is given its `ServerSecurity`. Clients are opened deep inside of libraries, all to processes of one deployment;
they take the process's one `ClientSecurity`, which is set once, at the start.
"""

from dataclasses import dataclass

import grpc

from services.common.config import ConfigError
from services.common.log import get_logger
from services.common.rpc.tls import Tls, server_credentials, watch_tls
from services.common.rpc.tokens import Tokens, watch_tokens

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityFiles:
    """Paths of PEM files and of a file with tokens; an empty one stands for none."""

    cert: str = ""
    key: str = ""
    ca: str = ""
    tokens: str = ""


@dataclass(frozen=True, slots=True)
class ServerSecurity:
    """What a server asks of its callers; the default asks nothing."""

    tls: Tls | None = None
    require_client_cert: bool = False
    tokens: Tokens | None = None

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS for a listening port, None for plaintext."""
        if self.tls is None:
            return None
        return server_credentials(self.tls, require_client_cert=self.require_client_cert)

    def stats(self) -> dict[str, int]:
        """How often its files were read anew, and how often that failed."""
        files = [each for each in (self.tls, self.tokens) if each is not None]
        return {
            "security_reloads": sum(each.reloads for each in files),
            "security_reload_failures": sum(each.failures for each in files),
        }


@dataclass(frozen=True, slots=True)
class ClientSecurity:
    """What a client shows; the default is plaintext and no token. `server_name` is whose certificate it wants."""

    tls: Tls | None = None
    server_name: str = ""
    tokens: Tokens | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to show."""
        return self.tls is None and self.tokens is None


_client = ClientSecurity()


def client_security() -> ClientSecurity:
    """What clients of this process show that are not told otherwise."""
    return _client


def use_client_security(security: ClientSecurity) -> None:
    """Sets what clients of this process show from now on; channels that are open stay as they are."""
    global _client
    _client = security


def server_security(files: SecurityFiles, *, require_client_cert: bool = False) -> ServerSecurity:
    """What a server with these files asks for: TLS where there is a certificate, a token where there are tokens.

    Raises:
        ConfigError: a file is wrong, or client certificates cannot be verified.
    """
    if require_client_cert and not (files.cert and files.ca):
        raise ConfigError("client certificates can only be required with a certificate of our own and an authority")
    tls = watch_tls(files.cert, files.key, files.ca) if files.cert else None
    if files.tokens and tls is None:
        _log.warning("tokens_in_plaintext", file=files.tokens, why="without TLS everybody on the way reads them")
    return ServerSecurity(tls, require_client_cert, watch_tokens(files.tokens))


def new_client_security(files: SecurityFiles, server_name: str = "") -> ClientSecurity:
    """What clients with these files show: TLS where there is a certificate or an authority.

    Raises:
        ConfigError: a file is wrong.
    """
    return ClientSecurity(watch_tls(files.cert, files.key, files.ca), server_name, watch_tokens(files.tokens))
