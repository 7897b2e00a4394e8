"""What benchmarks of the engine and the handoff assume: weights, pieces of prompts, sizes of fetches, a raw socket."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.case import Case
from benchmarks.decode_engine import step_flops
from benchmarks.flags import byte_counts, count, counts, positive
from benchmarks.prefill_engine import chunks
from benchmarks.raw_socket import RawClient, RawServer
from benchmarks.transfer_pair import TOKEN_BYTES, TransferCase
from benchmarks.weights import WeightCounts, count_shapes, count_weights
from services.common.checkpoint import resolve_checkpoint


def test_the_embedding_is_not_multiplied() -> None:
    """Of an embedding and a head of its own, one counts; of a tied one, its only copy; vectors count for nothing."""
    shapes = [(1000, 8), (8,), (8, 16), (16, 8)]
    assert count_shapes(shapes, 1000) == WeightCounts(matrices=256, head=8000)
    assert count_shapes([*shapes, (1000, 8)], 1000) == WeightCounts(matrices=256, head=8000)


def test_weights_are_counted_in_a_real_checkpoint() -> None:
    """The demo checkpoint, from its config: 4 layers of 256 with 8 and 4 heads of 32 and 512 in between, tied."""
    attention = 2 * 256 * 256 + 2 * 256 * 128
    assert count_weights(resolve_checkpoint("demo"), 2048) == WeightCounts(
        matrices=4 * (attention + 3 * 256 * 512), head=2048 * 256
    )


def test_operations_of_a_step_are_counted() -> None:
    """Hand-computed: two requests; per weight two operations, and four per layer, head, dimension and token in KV."""
    layout = SimpleNamespace(num_layers=3, head_dim=8)
    weights = WeightCounts(matrices=1000, head=100)
    engine: Any = SimpleNamespace(engine=SimpleNamespace(layout=layout), weights=weights, num_heads=4)
    assert step_flops(engine, 2, 10.5) == 2 * (2 * 1100 + 4 * 3 * 4 * 8 * 10.5)


@given(st.integers(1, 6), st.integers(1, 50), st.integers(1, 60))
def test_chunks_cover_every_prompt_once_and_in_order(batch: int, tokens: int, step_tokens: int) -> None:
    """No step is too large or empty, and each prompt's pieces follow each other."""
    steps = list(chunks(Case(batch, tokens), step_tokens))
    assert all(0 < sum(end - start for _, start, end in step) <= step_tokens for step in steps)
    fed: dict[int, int] = dict.fromkeys(range(batch), 0)
    for request, start, end in (piece for step in steps for piece in step):
        assert start == fed[request] < end
        fed[request] = end
    assert set(fed.values()) == {tokens}


@given(st.integers(1, 2**24), st.integers(1, 2**26))
def test_a_small_fetch_is_one_message(message_bytes: int, fetch_bytes: int) -> None:
    """Its KV fits a message, is no larger than the large fetch, and the settings allow both."""
    case = TransferCase(message_bytes=message_bytes, fetch_bytes=fetch_bytes, checksum=True, repeats=1)
    assert 1 <= case.message_tokens <= case.fetch_tokens
    assert case.message_tokens * TOKEN_BYTES <= case.config.max_message_bytes <= case.config.staging_bytes


def test_a_raw_socket_fills_the_buffer() -> None:
    """Two requests on one connection, of sizes that are no multiples of the message."""
    server = RawServer()
    client = RawClient(server.port)
    try:
        for size in (1, 100_001):
            buffer = bytearray(b"x" * size)
            client.fetch(memoryview(buffer), 4096)
            assert buffer == bytes(size)
    finally:
        client.close()
        server.close()


def test_flags_are_read() -> None:
    """Each as people write it."""
    assert (count("3"), counts("1,8"), positive("0.5"), byte_counts("64KiB,1MiB")) == (3, (1, 8), 0.5, (2**16, 2**20))


@pytest.mark.parametrize(
    ("read", "text"), [(count, "0"), (count, "x"), (counts, "1,,2"), (positive, "nan"), (byte_counts, "1 parsec")]
)
def test_a_wrong_flag_is_named(read: object, text: str) -> None:
    """Argparse shows the message instead of a traceback."""
    assert callable(read)
    with pytest.raises(argparse.ArgumentTypeError):
        read(text)
