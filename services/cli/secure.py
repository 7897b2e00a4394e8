"""How the `baton` command shows who it is: options before the command's name, or BATON_CLIENT_ variables."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from services.common.config import ConfigError
from services.common.rpc.security import SecurityFiles, new_client_security, use_client_security

_PANEL = "To secured processes"
_PREFIX = "BATON_CLIENT_"


def secure(
    tls_ca: Annotated[
        str,
        typer.Option(envvar=f"{_PREFIX}TLS_CA", help="PEM file with authorities to trust.", rich_help_panel=_PANEL),
    ] = "",
    tls_cert: Annotated[
        str,
        typer.Option(envvar=f"{_PREFIX}TLS_CERT", help="PEM file: certificate to show.", rich_help_panel=_PANEL),
    ] = "",
    tls_key: Annotated[
        str, typer.Option(envvar=f"{_PREFIX}TLS_KEY", help="PEM file: its key.", rich_help_panel=_PANEL)
    ] = "",
    tls_server_name: Annotated[
        str,
        typer.Option(
            envvar=f"{_PREFIX}TLS_SERVER_NAME",
            help="Name that servers' certificates must carry; empty: the host.",
            rich_help_panel=_PANEL,
        ),
    ] = "",
    token_file: Annotated[
        str,
        typer.Option(envvar=f"{_PREFIX}TOKEN_FILE", help="File whose first token is shown.", rich_help_panel=_PANEL),
    ] = "",
) -> None:
    """Serves large language models with prefill and decode in separate gRPC services."""
    if bool(tls_cert) is not bool(tls_key):
        raise typer.BadParameter("--tls-cert and --tls-key belong together; give both")
    try:
        _use(tls_ca, tls_cert, tls_key, tls_server_name, token_file)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def as_variables(options: Mapping[str, Any]) -> dict[str, str]:
    """The options of `secure` as variables, for a process that is started in the place of this one."""
    return {f"{_PREFIX}{name.upper()}": str(value) for name, value in options.items()}


def use_variables() -> None:
    """Shows from now on what the variables say.

    Raises:
        ConfigError: a file is wrong.
    """
    names = ("TLS_CA", "TLS_CERT", "TLS_KEY", "TLS_SERVER_NAME", "TOKEN_FILE")
    _use(*(os.environ.get(f"{_PREFIX}{name}", "") for name in names))


def _use(ca: str, cert: str, key: str, server_name: str, tokens: str) -> None:
    use_client_security(new_client_security(SecurityFiles(cert=cert, key=key, ca=ca, tokens=tokens), server_name))
