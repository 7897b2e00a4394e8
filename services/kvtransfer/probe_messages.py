"""The message with which a source answers a probe of a channel that is open."""

from dataclasses import replace

from services.kvtransfer.checksum import checksum_of, probe_bytes, write_bytes
from services.kvtransfer.events import ChunkHeader, ProbeOrder
from services.kvtransfer.sending import Staged
from services.kvtransfer.staging import Staging

PROBE_BYTES = 64 * 1024


def probe_header(order: ProbeOrder, sequence: int, max_bytes: int) -> ChunkHeader:
    """At the source: announces the pattern."""
    return ChunkHeader(
        sequence=sequence,
        fetch_id=order.probe_id,
        epoch=order.epoch,
        start_token=0,
        end_token=0,
        num_bytes=min(PROBE_BYTES, max_bytes),
    )


def stage_probe(header: ChunkHeader, staging: Staging) -> Staged:
    """At the source, on the channel's thread: writes the pattern into staging."""
    data = staging.take(header.num_bytes)
    write_bytes(data, probe_bytes(header.num_bytes, header.epoch, b""))
    return Staged(replace(header, checksum=checksum_of(data)), data)
