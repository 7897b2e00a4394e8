"""What the two sides of a gloo pair tell each other before they connect, checked and cleaned on its way.

gloo believes every length that the other side wrote: a wrong one crashes the process (seen with torch 2.13), which
nobody who can reach the rendezvous must be able to do. What it writes itself ends in uninitialised memory. So values
are taken apart here; they are, in the machine's own byte order,

    length, host name │ length, socket address padded to a fixed size, sequence │ one number for each rank

Pure.
"""

import socket
import struct

from services.common.errors import ChannelBroken

MAX_HOST_BYTES = 255
_LENGTH = struct.Struct("=Q")
_IPV4_BYTES = 16
_IPV6_BYTES = 28
_SEQUENCE_BYTES = 8
_MAX_ADDRESS_BYTES = 256
_MAX_RANKS_BYTES = 16


class GlooAddresses:
    """The values of one pair as one side sees them: the other side's must have the shape of those that gloo made here.

    Thread: the channel's.
    """

    def __init__(self) -> None:
        self._own: tuple[bytes, bytes] | None = None

    def own(self, value: bytes) -> bytes:
        """What gloo wrote here, without what is none of the other side's business.

        Raises:
            ChannelBroken: this gloo writes something else than is known.
        """
        parts = _parts(value)
        if parts is None:
            raise ChannelBroken(f"gloo describes itself in {len(value)} bytes of unknown form; use another torch")
        host, address, ranks = parts
        self._own = (address, ranks)
        return _joined(host, _without_padding(address), ranks)

    def other(self, value: bytes) -> bytes:
        """What the other side wrote, where gloo can take it.

        Raises:
            ChannelBroken: it is not what a gloo like this one writes.
        """
        parts = _parts(value)
        if parts is None or self._own is None:
            raise ChannelBroken("the other side of the channel described itself in an unknown form; it was not joined")
        host, address, ranks = parts
        own_address, own_ranks = self._own
        is_alike = len(address) == len(own_address) and len(ranks) == len(own_ranks)
        if not is_alike or address[:2] != own_address[:2]:
            message = "the other side of the channel has another kind of address than this one"
            raise ChannelBroken(f"{message}; set kv_host on both to the same kind")
        if address[-_SEQUENCE_BYTES:] != own_address[-_SEQUENCE_BYTES:]:
            raise ChannelBroken("the other side of the channel described itself in an unknown form; it was not joined")
        return _joined(host, _without_padding(address), ranks)


def _parts(value: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Host name, address with sequence, ranks; None where the value has another form."""
    host, rest = _counted(value, MAX_HOST_BYTES)
    address, ranks = _counted(rest, _MAX_ADDRESS_BYTES)
    is_known = len(address) >= _IPV6_BYTES + _SEQUENCE_BYTES and len(ranks) == _MAX_RANKS_BYTES
    return (host, address, ranks) if is_known else None


def _counted(data: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    """The first part, which its length precedes, and the rest; nothing where the length cannot be right."""
    if len(data) < _LENGTH.size:
        return b"", b""
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    return (data[_LENGTH.size : end], data[end:]) if length <= max_bytes and end <= len(data) else (b"", b"")


def _without_padding(address: bytes) -> bytes:
    used = _IPV6_BYTES if socket.AF_INET6 in address[:2] else _IPV4_BYTES
    return address[:used] + bytes(len(address) - used - _SEQUENCE_BYTES) + address[-_SEQUENCE_BYTES:]


def _joined(host: bytes, address: bytes, ranks: bytes) -> bytes:
    return _LENGTH.pack(len(host)) + host + _LENGTH.pack(len(address)) + address + ranks
