"""The only mapping between `BatonError` and gRPC status.

A status carries `google.rpc.Status` details, so that the same typed error exists on both sides of a call: ErrorInfo
(class name, domain, details), RetryInfo where waiting helps, BadRequest with every field that is wrong.
"""

from collections.abc import Iterable, Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import (
    BatonError,
    Cancelled,
    Code,
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidRequest,
    KvCorrupt,
    NotFound,
    Overloaded,
    PeerError,
    PeerIncompatible,
    PeerUnreachable,
    PermissionDenied,
    QueueFull,
    Unauthenticated,
    error_classes,
)

DOMAIN = "baton"
DETAILS_KEY = "grpc-status-details-bin"

# gRPC refuses more than 8 KiB of metadata; an error must fit, whatever a client put into the request that caused it.
MAX_MESSAGE_CHARS = 1024
MAX_STATUS_MESSAGE_CHARS = 256
MAX_DETAILS = 16
MAX_DETAIL_CHARS = 128
MAX_VIOLATIONS = 16
MAX_VIOLATION_CHARS = 192
RETRY_WHEN_BUSY_S = 1.0

_STATUS_CODES: dict[Code, grpc.StatusCode] = {code: grpc.StatusCode[code.name] for code in Code}

# What a status without (known) details stands for.
_FALLBACKS: dict[grpc.StatusCode, type[BatonError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: PeerError,
    grpc.StatusCode.FAILED_PRECONDITION: PeerIncompatible,
    grpc.StatusCode.UNIMPLEMENTED: PeerIncompatible,
    grpc.StatusCode.DATA_LOSS: KvCorrupt,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNKNOWN: Internal,
}

Metadata = Iterable[tuple[str, str | bytes]]


def status_code(error: BatonError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return _STATUS_CODES[error.code]


def status_message(error: BatonError) -> str:
    """The error's message, cut to what a status line may hold."""
    return _cut(error.message, MAX_STATUS_MESSAGE_CHARS)


def status_metadata(error: BatonError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that lets the other side rebuild the error."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def to_status(error: BatonError) -> status_pb2.Status:
    """Builds the rich status of an error; long texts are cut, so that it always fits into metadata."""
    status = status_pb2.Status(code=status_code(error).value[0], message=_cut(error.message, MAX_MESSAGE_CHARS))
    info = error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN, metadata=_cut_details(error.details))
    status.details.add().Pack(info)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, round(error.retry_after_s * 1e9)))
        status.details.add().Pack(retry)
    if isinstance(error, InvalidRequest):
        status.details.add().Pack(_bad_request(error))
    return status


def from_status(status: status_pb2.Status, code: grpc.StatusCode, peer: str) -> BatonError:
    """Rebuilds the error that a peer answered with; a class that only a newer peer knows falls back on the code."""
    reason, details, retry_after_s, violations = "", dict[str, str](), None, list[FieldViolation]()
    for packed in status.details:
        info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
        if packed.Unpack(info) and info.domain == DOMAIN:
            reason, details = info.reason, dict(info.metadata)
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif packed.Unpack(bad):
            violations = [FieldViolation(v.field, v.description) for v in bad.field_violations]
    known = error_classes().get(reason)
    cls = known or _FALLBACKS.get(code, PeerError)
    if issubclass(cls, InvalidRequest) or (known is None and code is grpc.StatusCode.INVALID_ARGUMENT):
        return InvalidRequest(violations or FieldViolation("request", status.message or "is invalid"), details=details)
    return cls(status.message or f"{peer} answered {code.name}", details=details, retry_after_s=retry_after_s)


def from_rpc_error(error: grpc.aio.AioRpcError, peer: str) -> BatonError:
    """Turns what a failed call raised into a typed error; `peer` names the other side in messages made here."""
    status = _rich_status(error.trailing_metadata())
    if status is not None and status.code == error.code().value[0]:
        return from_status(status, error.code(), peer)
    return _from_plain(error.code(), error.details() or "", peer)


def is_connection_loss(error: BatonError) -> bool:
    """True where a call failed because its connection did, False where a Baton process ended it with an error."""
    cause = error.__cause__
    if not isinstance(error, PeerUnreachable) or not isinstance(cause, grpc.aio.AioRpcError):
        return False
    return _rich_status(cause.trailing_metadata()) is None


def _from_plain(code: grpc.StatusCode, text: str, peer: str) -> BatonError:
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"{peer} cannot be reached ({text}); check that it runs and that its address is right"
        return PeerUnreachable(message, details={"peer": peer})
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{peer} did not answer within the time that was left")
    if code is grpc.StatusCode.CANCELLED:
        # Our own cancellation surfaces as CancelledError, so this one is the peer's: it stopped under the call.
        return PeerUnreachable(f"{peer} dropped the call; another worker may take it", details={"peer": peer})
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return PeerIncompatible(f"{peer} does not serve this method ({text}); its version or its tier is another one")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in text:
        return InvalidRequest(FieldViolation("request", f"or its answer is larger than {peer} allows ({text})"))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "oncurrent" in text:
        message = f"{peer} runs as many calls as it may; try again later"
        return QueueFull(message, retry_after_s=RETRY_WHEN_BUSY_S)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(FieldViolation("request", text or "is invalid"))
    return _FALLBACKS.get(code, PeerError)(f"{peer} answered {code.name}: {text}")


def _rich_status(metadata: Metadata | None) -> status_pb2.Status | None:
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _bad_request(error: InvalidRequest) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in error.violations[:MAX_VIOLATIONS]:
        description = _cut(violation.description, MAX_VIOLATION_CHARS)
        bad.field_violations.add(field=_cut(violation.field, MAX_DETAIL_CHARS), description=description)
    return bad


def _cut_details(details: Mapping[str, str]) -> dict[str, str]:
    pairs = list(details.items())[:MAX_DETAILS]
    return {_cut(key, MAX_DETAIL_CHARS): _cut(value, MAX_DETAIL_CHARS) for key, value in pairs}


def _cut(text: str, limit: int) -> str:
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
