"""How others call a decode worker."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from baton.v1 import decode_pb2 as pb
from baton.v1 import decode_pb2_grpc as rpc

from services.common.errors import BatonError, PeerError
from services.common.rpc.channel import answered, rpc_errors, timeout_left
from services.common.rpc.tracing import trace_metadata
from services.common.types import DecodeEvent, WorkRequest
from services.decode.convert import event_from_proto, request_to_proto, watched_from_proto
from services.decode.place import Place
from services.decode.reading import Reading
from services.decode.token_reader import TokenReader


class DecodeClient:
    """Calls one decode worker over a channel that the caller owns; `peer` names the worker in errors."""

    def __init__(self, channel: grpc.aio.Channel, peer: str) -> None:
        self._stub = rpc.DecodeServiceStub(channel)
        self._peer = peer
        self._tokens = TokenReader(self._watch_tokens, watched_from_proto, peer)

    async def decode(self, request: WorkRequest) -> AsyncGenerator[DecodeEvent]:
        """Streams all tokens of a request by its deadline; the last event has the summary.

        All requests of this client share one call for their tokens, where the worker serves that.

        Raises:
            BatonError: what the worker answered, or why it could not be asked.
        Cancel: close the iterator; the worker stops within one step.
        """
        async with self._tokens.reading(request.deadline) as (reading, place):
            call = self._start(request, place)
            following = asyncio.create_task(self._follow(call, reading))
            try:
                while (event := await reading.take()) is not None:
                    yield event
            finally:
                call.cancel()
                following.cancel()
                await asyncio.wait([following])

    def close(self) -> None:
        """Ends the calls for tokens; the channel is the caller's."""
        self._tokens.close()

    def stats(self) -> dict[str, int]:
        """Calls for tokens that are open, and the requests on them."""
        return self._tokens.stats()

    def _watch_tokens(self, watch_id: str) -> Any:
        return self._stub.WatchTokens(pb.WatchTokensRequest(watch_id=watch_id))

    def _start(self, request: WorkRequest, place: Place | None) -> Any:
        with rpc_errors(self._peer):
            message = request_to_proto(request, place)
            return self._stub.Decode(message, timeout=timeout_left(request.deadline), metadata=trace_metadata())

    async def _follow(self, call: Any, reading: Reading) -> None:
        """Reads the request's own call to its end."""
        try:
            with rpc_errors(self._peer):
                async for response in call:
                    reading.called(event_from_proto(answered(response, self._peer)))
                    await reading.taken()
        except BatonError as error:
            reading.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever escapes must reach whoever reads
            reading.fail(PeerError(f"{self._peer} answered with what cannot be read: {type(error).__name__}"))
        reading.end()
