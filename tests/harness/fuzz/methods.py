"""What there is to fuzz: asked of each server by reflection, with the descriptors of its requests and answers."""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

import baton.v1
import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

pb2: Any = reflection_pb2


@dataclass(frozen=True)
class Method:
    """One RPC of one server."""

    address: str
    path: str
    request: Any
    response: Any

    @property
    def name(self) -> str:
        """Without its package."""
        return self.path.rpartition("/")[2]


async def methods_of(address: str) -> list[Method]:
    """Every RPC that a server says it serves."""
    for module in pkgutil.iter_modules(baton.v1.__path__):
        if module.name.endswith("_pb2"):
            importlib.import_module(f"baton.v1.{module.name}")
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([pb2.ServerReflectionRequest(list_services="")]), timeout=10)
        answer = await call.read()
        call.cancel()
    return [method for each in answer.list_services_response.service for method in _methods(address, each.name)]


def _methods(address: str, service: str) -> list[Method]:
    pool: Any = descriptor_pool.Default()
    return [
        Method(
            address,
            f"/{service}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in pool.FindServiceByName(service).methods
    ]
