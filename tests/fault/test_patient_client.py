"""A request that nobody ends is found."""

import socket

import pytest

from services.common.sampling import SamplingParams
from tests.fault import clients
from tests.fault.checks import lateness
from tests.fault.clients import Asking, Clients
from tests.fault.evidence import Part


class SilentCluster:
    """As `scenario.Cluster`, as far as clients need one: a frontend that takes connections and says nothing."""

    def __init__(self, address: str) -> None:
        self._address = address

    def names(self, *_: str) -> list[str]:
        return ["frontend-0"]

    def address(self, _: str) -> str:
        return self._address

    def expected(self, *_: object) -> dict[int, list[int]]:
        return {0: []}


async def test_a_frontend_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch):
    """A client's own gRPC does not end a call that the server leaves open after its deadline."""
    monkeypatch.setattr(clients, "PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the machine takes connections that nobody accepts
        host, port = silent.getsockname()
        asking = Clients(SilentCluster(f"{host}:{port}"))  # type: ignore[arg-type]
        asked = Asking(sampling=SamplingParams(max_tokens=1), prompt_tokens=4, deadline_s=0.2)
        record = asking.ask(Part.SUBJECT, asked)
        await asking.wait(record)
        await asking.close()
    assert lateness(record) == "never ended"
