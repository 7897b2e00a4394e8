"""What checksums and the probe's pattern tell apart."""

import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from services.kvtransfer.checksum import checksum_of, probe_bytes, read_bytes, write_bytes


@given(st.binary(max_size=2000))
def test_checksum_is_xxh3_of_the_bytes(content: bytes) -> None:
    """Any implementation of XXH3-64 can check our messages."""
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    assert checksum_of(data) == xxhash.xxh3_64_intdigest(content)


@given(st.binary(min_size=1, max_size=500), st.data())
def test_one_flipped_bit_changes_the_checksum(content: bytes, data: st.DataObject) -> None:
    """The smallest damage is seen."""
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    before = checksum_of(tensor)
    tensor[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum_of(tensor) != before


def test_pattern_differs_between_epochs() -> None:
    """A late probe of an earlier epoch does not prove a later one."""
    data = torch.empty(1000, dtype=torch.uint8)
    write_bytes(data, probe_bytes(1000, 3, b"proof"))
    assert read_bytes(data) == probe_bytes(1000, 3, b"proof")
    assert read_bytes(data) != probe_bytes(1000, 4, b"proof")


def test_zeros_are_no_pattern() -> None:
    """A buffer that nothing was received into is not taken for a probe."""
    assert not any(probe_bytes(64, epoch, b"") == bytes(64) for epoch in range(300))
