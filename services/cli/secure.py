"""How the `baton` command shows who it is: options before the command's name, or BATON_CLIENT_ variables."""

from typing import Annotated

import typer

from services.common.config import ConfigError
from services.common.rpc.security import SecurityFiles, new_client_security, use_client_security

_PANEL = "To secured processes"


def secure(
    tls_ca: Annotated[
        str,
        typer.Option(envvar="BATON_CLIENT_TLS_CA", help="PEM file with authorities to trust.", rich_help_panel=_PANEL),
    ] = "",
    tls_cert: Annotated[
        str,
        typer.Option(envvar="BATON_CLIENT_TLS_CERT", help="PEM file: certificate to show.", rich_help_panel=_PANEL),
    ] = "",
    tls_key: Annotated[
        str, typer.Option(envvar="BATON_CLIENT_TLS_KEY", help="PEM file: its key.", rich_help_panel=_PANEL)
    ] = "",
    tls_server_name: Annotated[
        str,
        typer.Option(
            envvar="BATON_CLIENT_TLS_SERVER_NAME",
            help="Name that servers' certificates must carry; empty: the host.",
            rich_help_panel=_PANEL,
        ),
    ] = "",
    token_file: Annotated[
        str,
        typer.Option(envvar="BATON_CLIENT_TOKEN_FILE", help="File whose first token is shown.", rich_help_panel=_PANEL),
    ] = "",
) -> None:
    """Serves large language models with prefill and decode in separate gRPC services."""
    if bool(tls_cert) is not bool(tls_key):
        raise typer.BadParameter("--tls-cert and --tls-key belong together; give both")
    files = SecurityFiles(cert=tls_cert, key=tls_key, ca=tls_ca, tokens=token_file)
    try:
        use_client_security(new_client_security(files, tls_server_name))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
