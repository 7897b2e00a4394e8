"""How others call a decode worker."""

from collections.abc import AsyncGenerator

import grpc
from baton.v1 import decode_pb2_grpc as rpc

from services.common.rpc.channel import answered, rpc_errors, timeout_left
from services.common.rpc.tracing import trace_metadata
from services.common.types import DecodeEvent, WorkRequest
from services.decode.convert import event_from_proto, request_to_proto


class DecodeClient:
    """Calls one decode worker over a channel that the caller owns; `peer` names the worker in errors."""

    def __init__(self, channel: grpc.aio.Channel, peer: str) -> None:
        self._stub = rpc.DecodeServiceStub(channel)
        self._peer = peer

    async def decode(self, request: WorkRequest) -> AsyncGenerator[DecodeEvent]:
        """Streams all tokens of a request by its deadline; the last event has the summary.

        Raises:
            BatonError: what the worker answered, or why it could not be asked.
        Cancel: close the iterator; the worker stops within one step.
        """
        with rpc_errors(self._peer):
            call = self._stub.Decode(
                request_to_proto(request), timeout=timeout_left(request.deadline), metadata=trace_metadata()
            )
            try:
                async for response in call:
                    yield event_from_proto(answered(response, self._peer))
            finally:
                call.cancel()
