"""Spelling of addresses."""

import pytest

from services.common import ports


@pytest.mark.parametrize(
    ("host", "port", "address"), [("h", 1, "h:1"), ("::1", 90, "[::1]:90"), ("[::1]", 90, "[::1]:90")]
)
def test_join_and_split_are_inverse(host: str, port: int, address: str):
    """IPv6 literals get brackets on the way out and lose them on the way in."""
    assert ports.join_address(host, port) == address
    assert ports.split_address(address) == (host.strip("[]"), port)


@pytest.mark.parametrize("address", ["", "h", ":1", "h:", "h:x", "h:0", "h:65536", "h:-1"])
def test_what_is_no_address_is_refused(address: str):
    """A port must be a number in range, a host must be there."""
    with pytest.raises(ValueError, match="host:port"):
        ports.split_address(address)


def test_default_ports_do_not_collide():
    """All processes and their metrics fit on one machine."""
    grpc_ports = [ports.FRONTEND, ports.PREFILL, ports.DECODE, ports.KVTRANSFER]
    everything = [*grpc_ports, *map(ports.metrics_port, grpc_ports)]
    assert len(set(everything)) == len(everything)
    assert ports.metrics_port(0) == 0


def test_a_wildcard_is_advertised_as_this_machine():
    """Peers cannot connect to 0.0.0.0."""
    assert ports.reachable_host("0.0.0.0") == ports.reachable_host("::") != "0.0.0.0"
    assert ports.reachable_host("10.0.0.7") == "10.0.0.7"
