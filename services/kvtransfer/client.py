"""Client of `KvTransferService`: plain types in, plain types and typed errors out. Needs no torch."""

from collections.abc import AsyncGenerator

from baton.v1 import kv_transfer_pb2 as pb
from baton.v1 import kv_transfer_pb2_grpc as pb_grpc

from services.common.rpc.channel import answered, open_channel, rpc_errors, timeout_left
from services.kvtransfer.convert import (
    channel_request_to_proto,
    event_from_proto,
    fetch_order_to_proto,
    key_order_to_proto,
)
from services.kvtransfer.events import ChannelEvent, ChannelRequest, FetchOrder, KeyOrder, ProbeOrder, Released

# Whatever a source says of its leases, they are not renewed without a pause.
SHORTEST_LEASE_S = 0.1


class KvTransferClient:
    """Talks to one source. Owns its connection: `await close()`."""

    def __init__(self, address: str, peer: str) -> None:
        self._channel = open_channel(address)
        self._stub: pb_grpc.KvTransferServiceAsyncStub = pb_grpc.KvTransferServiceStub(self._channel)
        self._peer = peer

    async def open_channel(self, request: ChannelRequest) -> AsyncGenerator[ChannelEvent]:
        """Opens a channel and yields its events as long as it lives; closing the generator ends the call.

        Raises:
            BatonError: the source refused, broke the channel, or is gone.
        """
        call = self._stub.OpenChannel(channel_request_to_proto(request))
        try:
            with rpc_errors(self._peer):
                async for message in call:
                    yield event_from_proto(answered(message, self._peer))
        finally:
            call.cancel()

    async def await_ticket(self, request_id: str, ticket_id: str, deadline: float) -> float:
        """Waits until a ticket is open, is gone, or the deadline (monotonic); gives the seconds of its lease."""
        request = pb.AwaitTicketRequest(request_id=request_id, ticket_id=ticket_id)
        with rpc_errors(self._peer):
            response = answered(await self._stub.AwaitTicket(request, timeout=timeout_left(deadline)), self._peer)
        return max(SHORTEST_LEASE_S, response.lease_ms / 1e3)

    async def rendezvous(self, order: KeyOrder, deadline: float) -> bytes:
        """Sets or reads a key of a channel; a read waits for it until the deadline."""
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.Rendezvous(key_order_to_proto(order), timeout=timeout_left(deadline)), self._peer
            )
        return response.value

    async def fetch(self, order: FetchOrder, deadline: float) -> tuple[int, float]:
        """Asks for KV; waits until the source accepts, the ticket is gone, or the deadline (monotonic).

        Returns:
            The ticket's prompt tokens and the length of its lease in seconds.
        """
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.Fetch(fetch_order_to_proto(order), timeout=timeout_left(deadline)), self._peer
            )
        return response.num_tokens, response.lease_ms / 1e3

    async def probe(self, order: ProbeOrder, deadline: float) -> None:
        """Asks for a known pattern over an open channel; it comes on the channel."""
        request = pb.ProbeRequest(channel_id=order.channel_id, epoch=order.epoch, probe_id=order.probe_id)
        with rpc_errors(self._peer):
            await self._stub.Probe(request, timeout=timeout_left(deadline))

    async def renew(self, ticket_id: str, deadline: float) -> float:
        """Extends a lease and returns its length in seconds."""
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.Renew(pb.RenewRequest(ticket_id=ticket_id), timeout=timeout_left(deadline)), self._peer
            )
        return response.lease_ms / 1e3

    async def release(self, ticket_id: str, fetch_id: str, timeout_s: float) -> Released:
        """Gives a ticket back; an answer means that nothing of it goes on at the source."""
        request = pb.ReleaseRequest(ticket_id=ticket_id, fetch_id=fetch_id)
        with rpc_errors(self._peer):
            response = answered(await self._stub.Release(request, timeout=timeout_s), self._peer)
        stopped = response.stopped
        return Released(response.was_open, stopped_prefill=stopped.prefill, stopped_sending=stopped.sending)

    async def close(self) -> None:
        """Ends every call and the connection."""
        await self._channel.close()
