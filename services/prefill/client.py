"""How others call a prefill worker."""

import grpc
from baton.v1 import prefill_pb2_grpc as rpc

from services.common.rpc.channel import answered, rpc_errors, timeout_left
from services.common.rpc.tracing import trace_metadata
from services.common.types import PrefillResult, WorkRequest
from services.prefill.convert import request_to_proto, result_from_proto


class PrefillClient:
    """Calls one prefill worker over a channel that the caller owns; `peer` names the worker in errors."""

    def __init__(self, channel: grpc.aio.Channel, peer: str) -> None:
        self._stub = rpc.PrefillServiceStub(channel)
        self._peer = peer

    async def prefill(self, request: WorkRequest) -> PrefillResult:
        """Runs a prompt to its first token by the request's deadline.

        Raises:
            BatonError: what the worker answered, or why it could not be asked.
        Cancel: the worker stops within one chunk and drops the ticket.
        """
        with rpc_errors(self._peer):
            response = await self._stub.Prefill(
                request_to_proto(request), timeout=timeout_left(request.deadline), metadata=trace_metadata()
            )
        return result_from_proto(answered(response, self._peer))
