"""The metrics endpoint."""

import socket
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from services.common.config import ConfigError
from services.common.metrics import BYTES_BUCKETS, SECONDS_BUCKETS, TOKENS_BUCKETS, start_metrics_server


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_two_servers_serve_their_own_registries():
    """Nothing is global, so many processes' worth of metrics fit into one test."""
    registries = [CollectorRegistry(), CollectorRegistry()]
    counters = [Counter("baton_test_events", "Events.", registry=registry) for registry in registries]
    counters[1].inc(3)
    servers = [start_metrics_server("127.0.0.1", 0, registry) for registry in registries]
    try:
        assert "baton_test_events_total 0.0" in scrape(servers[0].port)
        assert "baton_test_events_total 3.0" in scrape(servers[1].port)
    finally:
        for server in servers:
            server.close()


def test_close_frees_port_and_thread():
    """The port can be bound again at once, and no thread is left."""
    before = set(threading.enumerate())
    server = start_metrics_server("127.0.0.1", 0, CollectorRegistry())
    server.close()
    assert set(threading.enumerate()) <= before
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))


def test_a_port_in_use_is_a_configuration_error():
    """That names the address and the setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--metrics-port"):
            start_metrics_server("127.0.0.1", taken.getsockname()[1], CollectorRegistry())


@pytest.mark.parametrize("buckets", [SECONDS_BUCKETS, BYTES_BUCKETS, TOKENS_BUCKETS])
def test_buckets_rise(buckets: tuple[float, ...]):
    """As Prometheus demands."""
    assert list(buckets) == sorted(set(buckets))
