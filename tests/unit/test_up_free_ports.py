"""Which ports `baton up` takes."""

import socket

from services.cli.free_ports import FreePorts, is_free


def test_a_port_with_a_listener_is_not_free() -> None:
    """A port is taken while somebody listens on it, and free afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", port)


def test_a_preferred_port_is_taken_once() -> None:
    """The preferred port is given where it is free, and never to two processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert FreePorts("127.0.0.1").take(port) != port
    free = FreePorts("127.0.0.1")
    assert free.take(port) == port
    assert free.take(port) != port


def test_ports_are_below_those_of_outgoing_connections() -> None:
    """Chosen ports cannot be taken by an outgoing connection before the process listens."""
    free = FreePorts("127.0.0.1")
    taken = [free.take() for _ in range(50)]
    assert len(set(taken)) == 50
    assert max(taken) < 32_768
