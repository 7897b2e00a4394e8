"""Translates between `kv_transfer.proto` and the plain events; the only place that does."""

from baton.v1 import kv_transfer_pb2 as pb

from services.common.convert import (
    choice_from_proto,
    choice_to_proto,
    layout_from_proto,
    layout_to_proto,
    stages_from_proto,
    stages_to_proto,
    worker_from_proto,
    worker_to_proto,
)
from services.common.errors import ChannelBroken, FieldViolation, InvalidRequest
from services.common.validation import id_violations
from services.kvtransfer.events import (
    ChannelEvent,
    ChannelOffer,
    ChannelProbe,
    ChannelRequest,
    ChunkHeader,
    FetchEnd,
    FetchOrder,
    KeyOrder,
)


def channel_request_from_proto(message: pb.OpenChannelRequest) -> ChannelRequest:
    """A sink's wish for a channel.

    Raises:
        InvalidRequest: the sink is missing, has ids that are none, or says nothing of its layout.
    """
    sink = worker_from_proto(message.sink, "sink")
    # Sinks are remembered by their ids for longer than their channels live.
    check_id("sink.worker_id", sink.worker_id)
    check_id("sink.incarnation", sink.incarnation)
    return ChannelRequest(
        sink=sink,
        source_incarnation=message.source_incarnation,
        transport=message.transport,
    )


def channel_request_to_proto(request: ChannelRequest) -> pb.OpenChannelRequest:
    """A sink's wish for a channel."""
    return pb.OpenChannelRequest(
        sink=worker_to_proto(request.sink),
        source_incarnation=request.source_incarnation,
        transport=request.transport,
    )


def fetch_order_from_proto(message: pb.FetchRequest) -> FetchOrder:
    """A wish for KV.

    Raises:
        InvalidRequest: an id is missing or is not one.
    """
    for name in ("request_id", "fetch_id", "ticket_id", "channel_id"):
        check_id(name, getattr(message, name))
    return FetchOrder(
        request_id=message.request_id,
        fetch_id=message.fetch_id,
        ticket_id=message.ticket_id,
        channel_id=message.channel_id,
        epoch=message.epoch,
        start_token=message.start_token,
    )


def fetch_order_to_proto(order: FetchOrder) -> pb.FetchRequest:
    """A wish for KV."""
    return pb.FetchRequest(
        request_id=order.request_id,
        fetch_id=order.fetch_id,
        ticket_id=order.ticket_id,
        channel_id=order.channel_id,
        epoch=order.epoch,
        start_token=order.start_token,
    )


def key_order_from_proto(message: pb.RendezvousRequest) -> KeyOrder:
    """A wish to set or read a key.

    Raises:
        InvalidRequest: an id is missing or is not one.
    """
    for name in ("channel_id", "key"):
        check_id(name, getattr(message, name))
    value = message.value if message.HasField("value") else None
    return KeyOrder(
        channel_id=message.channel_id, epoch=message.epoch, secret=message.secret, key=message.key, value=value
    )


def key_order_to_proto(order: KeyOrder) -> pb.RendezvousRequest:
    """A wish to set or read a key."""
    return pb.RendezvousRequest(
        channel_id=order.channel_id, epoch=order.epoch, secret=order.secret, key=order.key, value=order.value
    )


def check_id(name: str, value: str) -> None:
    """Refuses an id that is missing, long or not printable.

    Raises:
        InvalidRequest: names the field.
    """
    violations = id_violations(name, value) if value else [FieldViolation(name, "is missing")]
    if violations:
        raise InvalidRequest(violations)


def event_to_proto(event: ChannelEvent) -> pb.OpenChannelResponse:
    """One event of a channel's stream."""
    match event:
        case ChannelOffer():
            return pb.OpenChannelResponse(offer=_offer_to_proto(event))
        case ChannelProbe():
            probe = pb.ChannelProbe(sequence=event.sequence, num_bytes=event.num_bytes, checksum=event.checksum)
            return pb.OpenChannelResponse(probe=probe)
        case ChunkHeader():
            return pb.OpenChannelResponse(chunk=_header_to_proto(event))
        case FetchEnd():
            return pb.OpenChannelResponse(end=_end_to_proto(event))


def event_from_proto(message: pb.OpenChannelResponse) -> ChannelEvent:
    """One event of a channel's stream.

    Raises:
        ChannelBroken: an event that this version does not know.
    """
    match message.WhichOneof("event"):
        case "offer":
            return _offer_from_proto(message.offer)
        case "probe":
            probe = message.probe
            return ChannelProbe(sequence=probe.sequence, num_bytes=probe.num_bytes, checksum=probe.checksum)
        case "chunk":
            return _header_from_proto(message.chunk)
        case "end":
            return _end_from_proto(message.end)
        case None:
            raise ChannelBroken("the source sent what is no event, or none that this version knows; check its version")


def _offer_to_proto(offer: ChannelOffer) -> pb.ChannelOffer:
    return pb.ChannelOffer(
        channel_id=offer.channel_id,
        epoch=offer.epoch,
        layout=layout_to_proto(offer.layout),
        max_message_bytes=offer.max_message_bytes,
        secret=offer.secret,
    )


def _offer_from_proto(message: pb.ChannelOffer) -> ChannelOffer:
    return ChannelOffer(
        channel_id=message.channel_id,
        epoch=message.epoch,
        layout=layout_from_proto(message.layout),
        max_message_bytes=message.max_message_bytes,
        secret=message.secret,
    )


def _header_to_proto(header: ChunkHeader) -> pb.ChunkHeader:
    return pb.ChunkHeader(
        sequence=header.sequence,
        fetch_id=header.fetch_id,
        epoch=header.epoch,
        start_token=header.start_token,
        end_token=header.end_token,
        num_bytes=header.num_bytes,
        checksum=header.checksum,
    )


def _header_from_proto(message: pb.ChunkHeader) -> ChunkHeader:
    return ChunkHeader(
        sequence=message.sequence,
        fetch_id=message.fetch_id,
        epoch=message.epoch,
        start_token=message.start_token,
        end_token=message.end_token,
        num_bytes=message.num_bytes,
        checksum=message.checksum if message.HasField("checksum") else None,
    )


def _end_to_proto(end: FetchEnd) -> pb.FetchEnd:
    return pb.FetchEnd(
        fetch_id=end.fetch_id,
        first_tokens=[choice_to_proto(choice) for choice in end.first_tokens],
        stages=stages_to_proto(end.stages),
        cached_tokens=end.cached_tokens,
        error=end.error,
        error_message=end.error_message,
    )


def _end_from_proto(message: pb.FetchEnd) -> FetchEnd:
    return FetchEnd(
        fetch_id=message.fetch_id,
        first_tokens=tuple(choice_from_proto(choice) for choice in message.first_tokens),
        stages=stages_from_proto(message.stages),
        cached_tokens=message.cached_tokens,
        error=message.error,
        error_message=message.error_message,
    )
