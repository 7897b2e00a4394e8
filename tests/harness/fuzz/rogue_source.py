"""A source of KV that takes part as a good one does and gives hostile answers: a good answer with some of it changed.

Its KV is honest; what it says of it, of itself and of its channels is not.
"""

import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
from baton.v1 import kv_transfer_pb2 as pb
from google.protobuf import message_factory

from services.common.rpc.server import Binding
from services.kvtransfer.source import KvSource
from services.kvtransfer.transfer_service import FULL_NAME, KvTransferServicer
from tests.harness.fuzz.hostility import hostile

Context = grpc.aio.ServicerContext[Any, Any]

_SERVICE = pb.DESCRIPTOR.services_by_name[FULL_NAME.rpartition(".")[2]]


class RogueSource:
    """Answers for a source; while it `is_hostile`, this share of its messages is changed, made up, lost or repeated."""

    def __init__(self, seed: int, share: float) -> None:
        self.is_hostile = True
        self.num_hurt = 0
        self._rng = random.Random(seed)
        self._share = share

    def binding(self, source: KvSource) -> Binding:
        """How to mount it in the place of the source's own service."""
        honest = KvTransferServicer(source)

        def add(_: object, server: Any) -> None:
            handlers = {method.name: self._handler(honest, method) for method in _SERVICE.methods}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(FULL_NAME, handlers),))

        return Binding(FULL_NAME, honest, add)

    def _handler(self, honest: KvTransferServicer, method: Any) -> Any:
        behaviour = getattr(honest, method.name)
        read = message_factory.GetMessageClass(method.input_type).FromString

        async def answer(request: Any, context: Context) -> bytes:
            return (self._hurt(await behaviour(request, context)) or [b""])[0]

        async def stream(request: Any, context: Context) -> AsyncIterator[bytes]:
            async for message in behaviour(request, context):
                for data in self._hurt(message):
                    yield data

        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, request_deserializer=read)
        return grpc.unary_unary_rpc_method_handler(answer, request_deserializer=read)

    def _hurt(self, message: Any) -> list[bytes]:
        """What comes in the place of a message."""
        if not self.is_hostile or self._rng.random() >= self._share:
            return [message.SerializeToString()]
        self.num_hurt += 1
        return hostile(self._rng, message)
