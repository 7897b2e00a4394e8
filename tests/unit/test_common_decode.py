"""Naming the field that makes a message undecodable."""

import pytest
from baton.v1 import generation_pb2, kv_directory_pb2, types_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from services.common.rpc.decode import Undecodable, diagnose

BAD = b"\xff\xfe"
MARK = "QQ"
NO_UTF8 = "is not valid UTF-8"


def broken(message: object) -> bytes:
    """The message's bytes, with its marker text made invalid."""
    data = message.SerializeToString().replace(MARK.encode(), BAD)  # type: ignore[attr-defined]
    with pytest.raises(DecodeError):
        type(message).FromString(data)  # type: ignore[attr-defined]
    return data


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (generation_pb2.GenerateRequest(request_id=MARK), "request_id"),
        (generation_pb2.GenerateRequest(text=MARK), "text"),
        (
            generation_pb2.GenerateRequest(
                request_id="r",
                chat=generation_pb2.ChatPrompt(
                    messages=[
                        generation_pb2.ChatMessage(role="user", content="fine"),
                        generation_pb2.ChatMessage(role="user", content=MARK),
                    ]
                ),
            ),
            "chat.messages[1].content",
        ),
        (
            generation_pb2.GenerateRequest(sampling=types_pb2.SamplingParams(top_p=0.5, stop=["a", "b", MARK])),
            "sampling.stop[2]",
        ),
        (types_pb2.Load(running_requests=7, counters={MARK: 1}), "counters[0].key"),
        (
            kv_directory_pb2.RegisterRequest(
                worker=types_pb2.Worker(worker_id="w", layout=types_pb2.KvLayout(dtype="x", transports=["a", MARK]))
            ),
            "worker.layout.transports[1]",
        ),
    ],
)
def test_text_that_is_no_utf8_is_named_by_its_path(message: object, path: str):
    """Through nesting, repetition and maps."""
    assert diagnose(broken(message), message.DESCRIPTOR) == Undecodable(path, NO_UTF8)  # type: ignore[attr-defined]


def test_a_truncated_part_is_named():
    """The message around it is whole."""
    data = types_pb2.KvLayout(dtype="float32").SerializeToString()[:-1]
    outer = b"\x32" + bytes([len(data)]) + data
    found = diagnose(outer, types_pb2.Worker.DESCRIPTOR)
    assert found.field == "layout"


def test_truncated_packed_numbers_are_named():
    """A varint without its end inside a packed list."""
    found = diagnose(b"\x0a\x02\x01\x80", generation_pb2.TokenPrompt.DESCRIPTOR)
    assert found == Undecodable("token_ids", "is truncated")


@pytest.mark.parametrize("data", [b"\x80", b"\x0a\x05a", b"\x09\x00", b"\x0d\x00", b"\x0b", b"\xff" * 11])
def test_garbage_at_the_top_is_the_whole_request(data: bytes):
    """Cut varints, lengths, fixed numbers, groups and endless varints."""
    assert diagnose(data, generation_pb2.GenerateRequest.DESCRIPTOR).field == "request"


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(data: bytes):
    """Never an exception, whatever a client sends, and always a field."""
    found = diagnose(data, generation_pb2.GenerateRequest.DESCRIPTOR)
    assert found.field
    assert found.description


@given(st.lists(st.text(max_size=5), max_size=3), st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_damaged_messages_get_an_answer(stops: list[str], position: int, noise: bytes):
    """Valid messages with some bytes overwritten."""
    request = generation_pb2.GenerateRequest(request_id="r", sampling=types_pb2.SamplingParams(stop=stops))
    data = bytearray(request.SerializeToString())
    data[position : position + len(noise)] = noise
    assert diagnose(bytes(data), request.DESCRIPTOR).field
