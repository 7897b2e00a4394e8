"""The List method of grpc.health.v1 for versions of grpcio-health-checking whose protos do not have it yet.

Builds the two messages beside the package's own, so that the bytes are those of the official proto.
"""

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2 as _health_pb2  # pyright: ignore[reportAttributeAccessIssue]
from grpc_health.v1 import health_pb2_grpc

health_pb2: Any = _health_pb2

SERVICE = "grpc.health.v1.Health"
_PACKAGE = "grpc.health.v1"
_FIELD = descriptor_pb2.FieldDescriptorProto


def _message_classes() -> tuple[Any, Any]:
    """HealthListRequest and HealthListResponse."""
    if hasattr(health_pb2, "HealthListResponse"):
        return health_pb2.HealthListRequest, health_pb2.HealthListResponse
    file = descriptor_pb2.FileDescriptorProto(
        name="baton/health_list.proto", package=_PACKAGE, dependency=[health_pb2.DESCRIPTOR.name], syntax="proto3"
    )
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, type=_FIELD.TYPE_STRING)
    _add_field(entry, "value", 2, type=_FIELD.TYPE_MESSAGE, type_name=f".{_PACKAGE}.HealthCheckResponse")
    statuses = _add_field(response, "statuses", 1, type=_FIELD.TYPE_MESSAGE)
    statuses.label = _FIELD.LABEL_REPEATED
    statuses.type_name = f".{_PACKAGE}.HealthListResponse.StatusesEntry"
    pool: Any = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    names = ("HealthListRequest", "HealthListResponse")
    request_class, response_class = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in names
    )
    return request_class, response_class


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, **kind: Any) -> _FIELD:
    return message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL, **kind)


HealthListRequest, HealthListResponse = _message_classes()


def add_list_to_server(servicer: Any, server: grpc.aio.Server) -> None:
    """Mounts `servicer.List`, unless the package's generated code has done so already."""
    if hasattr(health_pb2_grpc.HealthServicer, "List"):
        return
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.List,
        request_deserializer=HealthListRequest.FromString,
        response_serializer=HealthListResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"List": handler}),))
