"""Prometheus: shared buckets and the endpoint.

Names are baton_<service>_<noun>_<unit>, in base units (seconds, bytes). Every process passes its own registry; there is
no global one, so that several servers can live in one process.
"""

import threading
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from services.common.config import ConfigError
from services.common.ports import join_address

SECONDS_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0,
)  # fmt: skip
TOKENS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
BYTES_BUCKETS = tuple(float(2**exponent) for exponent in range(10, 37, 2))

_JOIN_S = 5.0


class MetricsServer:
    """Serves a registry over HTTP until it is closed; `port` is the bound one."""

    def __init__(self, server: Any, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port: int = server.server_port

    def close(self) -> None:
        """Frees the port and ends the thread; blocks for up to half a second, so call it off the event loop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_JOIN_S)


def start_metrics_server(host: str, port: int, registry: CollectorRegistry) -> MetricsServer:
    """Serves `registry` at http://host:port/metrics; port 0 takes any free one.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        message = f"cannot serve metrics on {join_address(host, port)}: {error.strerror}"
        raise ConfigError(f"{message}; choose another --metrics-port, or 0 for none") from error
    return MetricsServer(server, thread)
