"""Ids by which workers are remembered and looked up are checked like every other id."""

import pytest
from baton.v1 import decode_pb2, kv_transfer_pb2

from services.common.convert import worker_to_proto
from services.common.errors import InvalidRequest
from services.decode.convert import request_from_proto
from services.kvtransfer.convert import channel_request_from_proto
from tests.harness.workers import worker_info

WRONG = ["x" * 129, "a\nb", "über"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["worker_id", "incarnation"])
def test_a_sink_cannot_make_the_source_remember_anything(name: str, wrong: str):
    """OpenChannel names the id of the sink that is too long or not printable."""
    sink = worker_to_proto(worker_info("decode-0"))
    setattr(sink, name, wrong)
    with pytest.raises(InvalidRequest) as caught:
        channel_request_from_proto(kv_transfer_pb2.OpenChannelRequest(sink=sink))
    assert [violation.field for violation in caught.value.violations] == [f"sink.{name}"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["ticket_id", "worker_id", "incarnation", "address"])
def test_a_handoff_has_proper_ids(name: str, wrong: str):
    """Decode names the part of the handoff that is too long or not printable."""
    parts = {"ticket_id": "t", "worker_id": "w", "incarnation": "i", "address": "127.0.0.1:1", name: wrong}
    request = decode_pb2.DecodeRequest(token_ids=[1], handoff=decode_pb2.Handoff(**parts))
    with pytest.raises(InvalidRequest) as caught:
        request_from_proto(request, 0.0)
    assert [violation.field for violation in caught.value.violations] == [f"handoff.{name}"]
