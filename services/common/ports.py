"""Default ports and the spelling of addresses, in one place."""

import socket

FRONTEND = 9000
PREFILL = 9100
DECODE = 9200
KVTRANSFER = 9300

METRICS_OFFSET = 1000

_WILDCARDS = ("", "0.0.0.0", "::", "[::]")


def metrics_port(port: int) -> int:
    """Default port of a process's metrics, given the port of its gRPC services; 0 (any free port) stays 0."""
    return port + METRICS_OFFSET if port else 0


def join_address(host: str, port: int) -> str:
    """Spells host:port; IPv6 literals get their brackets."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Takes host:port apart; brackets of IPv6 literals are dropped.

    Raises:
        ValueError: not of that form, or the port is not in [1, 65535].
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{address!r} is not host:port with a port in [1, 65535]")
    return host.strip("[]"), int(port)


def reachable_host(host: str) -> str:
    """Host that peers can use for a server that listens on `host`: this machine's name in place of a wildcard."""
    return socket.gethostname() if host in _WILDCARDS else host


def free_port(host: str) -> int:
    """A port that is free now; should somebody take it first, listening fails with a clear error."""
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]
