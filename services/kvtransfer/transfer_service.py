"""Serves `KvTransferService` for a source: convert, call, convert."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from baton.v1 import kv_transfer_pb2 as pb
from baton.v1 import kv_transfer_pb2_grpc as pb_grpc

from services.common.rpc.channel import deadline_of
from services.common.rpc.limits import SMALL_REQUEST_BYTES
from services.common.rpc.server import Binding
from services.kvtransfer.convert import (
    channel_request_from_proto,
    check_id,
    event_to_proto,
    fetch_order_from_proto,
    key_order_from_proto,
)
from services.kvtransfer.events import ProbeOrder
from services.kvtransfer.source import KvSource

FULL_NAME = "baton.v1.KvTransferService"
DEFAULT_FETCH_S = 60.0
DEFAULT_RENDEZVOUS_S = 10.0

Context = grpc.aio.ServicerContext[Any, Any]


class KvTransferServicer(pb_grpc.KvTransferServiceServicer):
    """Lets sinks at a source's tickets."""

    def __init__(self, source: KvSource) -> None:
        self._source = source

    async def OpenChannel(
        self, request: pb.OpenChannelRequest, context: Context
    ) -> AsyncIterator[pb.OpenChannelResponse]:
        """Runs a channel as long as the call lives."""
        events = self._source.open_channel(channel_request_from_proto(request))
        try:
            async for event in events:
                yield event_to_proto(event)
        finally:
            await events.aclose()

    async def AwaitTicket(self, request: pb.AwaitTicketRequest, context: Context) -> pb.AwaitTicketResponse:
        """Answers once the ticket is open."""
        check_id("ticket_id", request.ticket_id)
        lease_s = await self._source.await_ticket(request.ticket_id, deadline_of(context, DEFAULT_FETCH_S))
        return pb.AwaitTicketResponse(lease_ms=round(lease_s * 1e3))

    async def Rendezvous(self, request: pb.RendezvousRequest, context: Context) -> pb.RendezvousResponse:
        """Sets or reads a key of a channel."""
        deadline = deadline_of(context, DEFAULT_RENDEZVOUS_S)
        return pb.RendezvousResponse(value=await self._source.rendezvous(key_order_from_proto(request), deadline))

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> pb.FetchResponse:
        """Accepts a fetch once its ticket is there."""
        order = fetch_order_from_proto(request)
        num_tokens, lease_s = await self._source.fetch(order, deadline_of(context, DEFAULT_FETCH_S))
        return pb.FetchResponse(num_tokens=num_tokens, lease_ms=round(lease_s * 1e3))

    async def Probe(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeResponse:
        """Has a known pattern sent over a channel."""
        check_id("channel_id", request.channel_id)
        check_id("probe_id", request.probe_id)
        order = ProbeOrder(channel_id=request.channel_id, epoch=request.epoch, probe_id=request.probe_id)
        self._source.channels.find(order.channel_id, order.epoch).probe(order)
        return pb.ProbeResponse()

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:
        """Extends a lease."""
        check_id("ticket_id", request.ticket_id)
        return pb.RenewResponse(lease_ms=round(self._source.renew(request.ticket_id) * 1e3))

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        """Takes a ticket back."""
        check_id("ticket_id", request.ticket_id)
        released = self._source.release(request.ticket_id)
        if not released.was_open:
            return pb.ReleaseResponse()
        stopped = pb.StoppedWork(prefill=released.stopped_prefill, sending=released.stopped_sending)
        return pb.ReleaseResponse(was_open=True, stopped=stopped)


def binding(source: KvSource) -> Binding:
    """What a worker's server mounts."""
    return Binding(
        FULL_NAME, KvTransferServicer(source), pb_grpc.add_KvTransferServiceServicer_to_server, SMALL_REQUEST_BYTES
    )
