"""What a status means that carries no details of ours."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from services.common import errors
from services.common.rpc.status import DETAILS_KEY, from_rpc_error, to_status

Codes = grpc.StatusCode


def plain(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (Codes.UNAVAILABLE, "Connection refused", errors.PeerUnreachable),
        (Codes.CANCELLED, "", errors.PeerUnreachable),
        (Codes.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded),
        (Codes.UNIMPLEMENTED, "Method not found!", errors.PeerIncompatible),
        (Codes.FAILED_PRECONDITION, "", errors.PeerIncompatible),
        (Codes.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)", errors.InvalidRequest),
        (Codes.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", errors.QueueFull),
        (Codes.RESOURCE_EXHAUSTED, "", errors.Overloaded),
        (Codes.INVALID_ARGUMENT, "no", errors.InvalidRequest),
        (Codes.NOT_FOUND, "no", errors.NotFound),
        (Codes.DATA_LOSS, "no", errors.KvCorrupt),
        (Codes.INTERNAL, "no", errors.Internal),
        (Codes.UNKNOWN, "no", errors.Internal),
        (Codes.UNAUTHENTICATED, "no", errors.Unauthenticated),
        (Codes.PERMISSION_DENIED, "no", errors.PermissionDenied),
    ],
)
def test_every_plain_status_has_a_type(code: grpc.StatusCode, details: str, expected: type[errors.BatonError]):
    """Proxies, other servers and gRPC itself send no details; the peer is named all the same."""
    found = from_rpc_error(plain(code, details), "prefill-7")
    assert type(found) is expected
    assert found.message


@pytest.mark.parametrize("code", [code for code in Codes if code is not Codes.OK])
def test_no_code_is_left_out(code: grpc.StatusCode):
    """Also codes that Baton itself never sends become a typed error."""
    assert isinstance(from_rpc_error(plain(code), "p"), errors.BatonError)


def test_details_that_are_garbage_are_ignored():
    """The plain status counts then."""
    metadata = grpc.aio.Metadata((DETAILS_KEY, b"\xff\xff"))
    error = grpc.aio.AioRpcError(Codes.UNAVAILABLE, grpc.aio.Metadata(), metadata, "gone")
    assert type(from_rpc_error(error, "p")) is errors.PeerUnreachable


def test_details_of_another_status_are_ignored():
    """A proxy that replaces the status leaves the old details behind."""
    old = to_status(errors.NotFound("old")).SerializeToString()
    error = grpc.aio.AioRpcError(Codes.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata((DETAILS_KEY, old)), "gone")
    assert type(from_rpc_error(error, "p")) is errors.PeerUnreachable


def test_a_reason_of_another_domain_is_no_reason():
    """Somebody else's QueueFull is not ours."""
    status = status_pb2.Status(code=Codes.NOT_FOUND.value[0], message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="QueueFull", domain="other"))
    metadata = grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    error = grpc.aio.AioRpcError(Codes.NOT_FOUND, grpc.aio.Metadata(), metadata, "m")
    assert type(from_rpc_error(error, "p")) is errors.NotFound


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.1, 12.345678912, 3600.0])
def test_retry_hints_keep_their_precision(seconds: float):
    """To the nanosecond."""
    status = to_status(errors.QueueFull("full", retry_after_s=seconds))
    metadata = grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    error = grpc.aio.AioRpcError(Codes.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), metadata, "full")
    assert from_rpc_error(error, "p").retry_after_s == pytest.approx(seconds, abs=1e-9)
