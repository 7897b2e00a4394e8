"""Every error class has a place in gRPC and is the same error on both sides of a real call."""

import grpc
import pytest
from baton.v1 import prefill_pb2
from google.rpc import error_details_pb2

from services.common.errors import (
    BatonError,
    Code,
    FieldViolation,
    InvalidRequest,
    Overloaded,
    PeerError,
    PeerUnreachable,
    QueueFull,
    error_classes,
)
from services.common.rpc import status
from services.common.rpc.channel import rpc_errors
from tests.harness.rpc import PEER, ScriptedPrefill, running_server

CLASSES = sorted(error_classes())


def example(name: str) -> BatonError:
    cls = error_classes()[name]
    details = {"worker_id": "prefill-0", "why": "naïve ☃"}
    if issubclass(cls, InvalidRequest):
        return cls(
            [FieldViolation("sampling.top_p", "is 2, must be in (0, 1]"), FieldViolation("n", "is 0")], details=details
        )
    return cls(f"{name} happened — 100 % of it; do this", details=details, retry_after_s=0.25)


async def answered(error: Exception) -> BatonError:
    """What the caller gets when a real servicer raises `error`."""
    prefill = ScriptedPrefill()

    async def fail(request: object, context: object) -> prefill_pb2.PrefillResponse:
        raise error

    prefill.behaviour = fail
    async with running_server(prefill) as running:
        with pytest.raises(BatonError) as caught, rpc_errors(PEER):
            await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
    return caught.value


@pytest.mark.parametrize("name", CLASSES)
async def test_survives_the_round_trip(name: str):
    """Class, message, details, retry hint and violations arrive as they were raised."""
    error = example(name)
    found = await answered(error)
    assert type(found) is type(error)
    assert found.message == error.message
    assert found.details == error.details
    assert found.retry_after_s == error.retry_after_s
    assert found.retry is error.retry
    assert getattr(found, "violations", None) == getattr(error, "violations", None)


@pytest.mark.parametrize("name", CLASSES)
def test_is_mapped_to_a_code_that_says_failure(name: str):
    """No class is mapped to OK or UNKNOWN, and the code has the name that the class gives."""
    error = example(name)
    assert status.status_code(error) is grpc.StatusCode[error.code.name]
    assert status.status_code(error) not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


def test_all_codes_are_used_and_exist_in_grpc():
    """The code enum holds nothing that gRPC does not know, and nothing that no class needs."""
    assert {code.name for code in Code} <= {code.name for code in grpc.StatusCode}
    assert {cls.code for cls in error_classes().values()} == set(Code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAVAILABLE, PeerError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.ABORTED, PeerError),
    ],
)
def test_a_class_that_only_a_newer_peer_knows_falls_back_on_the_code(code: grpc.StatusCode, expected: type[BatonError]):
    """An unknown reason keeps message, details and retry hint, as the best class that this version has."""
    answer = status.to_status(QueueFull("later", details={"a": "b"}, retry_after_s=2.0))
    info = error_details_pb2.ErrorInfo(reason="FromTheFuture", domain=status.DOMAIN, metadata={"a": "b"})
    answer.details[0].Pack(info)
    answer.code = code.value[0]
    found = status.from_status(answer, code, PEER)
    assert type(found) is expected
    assert "later" in found.message
    assert found.details == {"a": "b"}


async def test_hostile_sizes_still_fit_into_metadata():
    """However long a message, and however many details and violations, the typed error arrives, cut."""
    many = [FieldViolation("f" * 5000, "ü" * 5000)] * 500
    found = await answered(InvalidRequest(many, details={f"{i}" * 300: "☃" * 5000 for i in range(200)}))
    assert isinstance(found, InvalidRequest)
    assert len(found.violations) == status.MAX_VIOLATIONS
    found = await answered(PeerUnreachable("☃" * 100_000))
    assert type(found) is PeerUnreachable
    assert len(found.message) == status.MAX_MESSAGE_CHARS


async def test_text_that_is_no_utf8_does_not_turn_into_internal():
    """Lone surrogates (from undecodable bytes) are replaced instead of breaking the answer."""
    found = await answered(PeerUnreachable("bad \ud800 text", details={"k": "\udfff"}))
    assert type(found) is PeerUnreachable
    assert found.message == "bad ? text"


async def test_an_unknown_exception_is_opaque():
    """What a bug says stays on the server; the caller gets an id only."""
    found = await answered(ValueError("secret prompt text"))
    assert type(found).__name__ == "Internal"
    assert "secret" not in found.message
    assert found.details["id"] in found.message
