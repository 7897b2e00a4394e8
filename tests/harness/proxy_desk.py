"""Where worker processes ask the test for proxies of their data links, over a socket in a folder.

A request is a line of JSON with the link's name and the host and port that the proxy is for; the answer is its port.
"""

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from services.common.errors import ChannelBroken
from tests.harness.link import Link
from tests.harness.proxied_keys import PortOf

DESK_VARIABLE = "BATON_TEST_PROXIES"
LINK_VARIABLE = "BATON_TEST_DATA_LINK"
WAIT_S = 10.0


class ProxyDesk:
    """The test's side: makes proxies of the links it has, and ends those that are used no more."""

    def __init__(self, path: Path, links: Mapping[str, Link]) -> None:
        self._path = path
        self._links = links
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listens."""
        self._server = await asyncio.start_unix_server(self._answer, self._path)

    async def close(self) -> None:
        """Listens no more; the links stay."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await asyncio.wait_for(reader.readline(), WAIT_S))
            link = self._links[asked["link"]]
            await link.forget_unused()
            proxy = await link.proxy(asked["port"], asked["host"])
            writer.write(f"{proxy.port}\n".encode())
            await writer.drain()
        except (OSError, ValueError, TimeoutError):
            return  # who asked is gone, or finds that nobody answers
        finally:
            writer.close()


def asking_port_of() -> PortOf | None:
    """How this worker process gets proxies of its data link; None where its cluster has none."""
    path, link = os.environ.get(DESK_VARIABLE), os.environ.get(LINK_VARIABLE)
    if path is None or link is None:
        return None

    def port_of(host: str, port: int) -> int:
        try:
            with socket.socket(socket.AF_UNIX) as desk:
                desk.settimeout(WAIT_S)
                desk.connect(path)
                desk.sendall(json.dumps({"link": link, "host": host, "port": port}).encode() + b"\n")
                with desk.makefile() as answer:
                    return int(answer.readline())
        except (OSError, ValueError) as error:
            raise ChannelBroken(f"the test has no proxy for {host}:{port}: {error}") from error

    return port_of
