"""Certificates for gRPC: read from PEM files, checked before use, and followed as the files change."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc

from services.common.config import ConfigError
from services.common.watched import Watched


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files hold, in PEM; `cert` and `key` are both there or both empty, as may be `ca`."""

    cert: bytes = b""
    key: bytes = field(default=b"", repr=False)
    ca: bytes = b""


Tls = Watched[TlsMaterial]


def watch_tls(cert: str, key: str, ca: str) -> Tls | None:
    """Follows the files; an empty path stands for none, three of them for no TLS.

    Raises:
        ConfigError: a file cannot be read, or they do not fit together.
    """
    paths = [Path(path) for path in (cert, key, ca) if path]
    return Watched(paths, lambda: load_tls(cert, key, ca)) if paths else None


def load_tls(cert: str, key: str, ca: str) -> TlsMaterial:
    """Reads the files and makes sure that they are certificates, and the key that of the certificate.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    found = TlsMaterial(_read(cert), _read(key), _read(ca))
    try:
        if found.cert:
            # An empty password, so that OpenSSL does not ask for one on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(f"{cert} and {key} are not a certificate and its unencrypted key: {_why(error)}") from None
    try:
        if found.ca:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{ca} holds no certificates of authorities: {_why(error)}") from None
    if found != TlsMaterial(_read(cert), _read(key), _read(ca)):
        raise ConfigError(f"{cert or ca} changed while it was read")
    return found


def server_credentials(tls: Tls, *, require_client_cert: bool) -> grpc.ServerCredentials:
    """Credentials that follow the files: each new connection gets what they hold then, open ones stay as they are."""
    given = tls.current()

    def fetch() -> "grpc.ServerCertificateConfiguration | None":
        # Called by gRPC on threads of its own, before each handshake; None keeps what it has.
        nonlocal given
        found = tls.current()
        if found is given:
            return None
        given = found
        return _configuration(found)

    # The stubs leave out that None is allowed.
    return grpc.dynamic_ssl_server_credentials(_configuration(given), cast(Any, fetch), require_client_cert)


def channel_credentials(material: TlsMaterial) -> grpc.ChannelCredentials:
    """Credentials of a client; without an authority of our own those of the system count."""
    return grpc.ssl_channel_credentials(material.ca or None, material.key or None, material.cert or None)


def _configuration(material: TlsMaterial) -> "grpc.ServerCertificateConfiguration":
    return grpc.ssl_server_certificate_configuration([(material.key, material.cert)], material.ca or None)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes() if path else b""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(reason or error or type(error).__name__)
