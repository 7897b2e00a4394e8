"""Leads gloo's connections through proxies: the source's keys have a proxy's port in every address.

Host and everything else of an address stay as gloo wrote them. Each side needs a host of its own, for gloo decides by
the addresses who connects.
"""

import dataclasses
import socket
import struct
from collections.abc import Callable

from services.kvtransfer.rendezvous import Keys
from services.kvtransfer.transport.base import Meeting, OpenTransport, Transport

PortOf = Callable[[str, int], int]
"""The port of a proxy, on the same host, in front of a host and port; blocks."""


class ProxiedKeys:
    """Keys in which gloo finds proxies in the place of addresses. Thread: the channel's."""

    def __init__(self, keys: Keys, port_of: PortOf) -> None:
        self._keys = keys
        self._port_of = port_of
        self._own: dict[str, bytes] = {}
        self._seen: dict[str, bytes] = {}

    def set(self, key: str, value: bytes, timeout_s: float) -> None:
        self._own[key] = value
        self._keys.set(key, self._through_proxy(value), timeout_s)

    def get(self, key: str, timeout_s: float) -> bytes:
        if key in self._own:
            return self._own[key]
        if key not in self._seen:
            self._seen[key] = self._through_proxy(self._keys.get(key, timeout_s))
        return self._seen[key]

    def _through_proxy(self, value: bytes) -> bytes:
        (host_bytes,) = struct.unpack_from("=Q", value)
        place = 8 + host_bytes + 8 + 2
        (port,) = struct.unpack_from(">H", value, place)
        host = socket.inet_ntoa(value[place + 2 : place + 6])
        return value[:place] + struct.pack(">H", self._port_of(host, port)) + value[place + 2 :]


def through(open_transport: OpenTransport, port_of: PortOf) -> OpenTransport:
    """The source's way to build pairs whose connection leads through proxies."""

    def build(meeting: Meeting, timeout_s: float) -> Transport:
        return open_transport(dataclasses.replace(meeting, keys=ProxiedKeys(meeting.keys, port_of)), timeout_s)

    return build
