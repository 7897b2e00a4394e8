"""What gloo's two sides tell each other: only what a gloo like ours writes gets through, and nothing of our memory."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import ChannelBroken
from services.kvtransfer.transport.gloo_address import GlooAddresses

RANKS = struct.pack("=qq", 0, 1)
SEQUENCE = struct.pack("=q", -1)


def value(
    port: int = 4711,
    host: bytes = b"vm",
    *,
    family: int = socket.AF_INET,
    junk: bytes = b"\xaa" * 112,
    ranks: bytes = RANKS,
) -> bytes:
    """As gloo writes it, uninitialised memory included."""
    address = struct.pack("=H", family) + struct.pack(">H", port) + bytes((127, 0, 0, 1)) + bytes(8) + junk + SEQUENCE
    return struct.pack("=Q", len(host)) + host + struct.pack("=Q", len(address)) + address + ranks


def test_a_value_loses_only_its_uninitialised_memory():
    """Host, port and ranks arrive; what gloo left in the padding does not leave the process."""
    assert GlooAddresses().own(value()) == value(junk=bytes(112))


def test_what_a_like_side_wrote_gets_through():
    """Another host and port are fine."""
    pair = GlooAddresses()
    pair.own(value())
    assert pair.other(value(9, b"another-host")) == value(9, b"another-host", junk=bytes(112))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"v",
        value()[:-1],
        value() + b"\0",
        struct.pack("=Q", 2**63) + value()[8:],
        value(host=b"h" * 300),
        value(family=socket.AF_INET6),
        value(ranks=b""),
        value().replace(SEQUENCE + RANKS, struct.pack("=q", 7) + RANKS),
    ],
)
def test_anything_else_is_refused(wrong: bytes):
    """A value of another shape, family or sequence never reaches gloo."""
    pair = GlooAddresses()
    pair.own(value())
    with pytest.raises(ChannelBroken):
        pair.other(wrong)


@given(st.binary(max_size=400), st.integers(0, 169), st.integers(0, 255))
def test_bytes_of_any_kind_are_refused_or_have_the_right_shape(data: bytes, position: int, byte: int):
    """Made-up bytes and changed values either fail in a typed way or keep the lengths that gloo will believe."""
    pair = GlooAddresses()
    pair.own(value())
    changed = bytearray(value())
    changed[position] = byte
    for candidate in (data, bytes(changed)):
        try:
            passed = pair.other(candidate)
        except ChannelBroken:
            continue
        (host_bytes,) = struct.unpack_from("=Q", passed)
        (address_bytes,) = struct.unpack_from("=Q", passed, 8 + host_bytes)
        assert (address_bytes, len(passed)) == (136, 8 + host_bytes + 8 + 136 + len(RANKS))
