"""Staging buffers are bounded, reused, and gone when their channel is."""

import pytest
import torch

from services.kvtransfer.staging import Staging, as_kv, token_bytes
from tests.harness.fake_kv import LAYOUT, layout_with


def test_buffers_are_made_on_first_use_and_reused() -> None:
    """An idle channel costs no memory; a busy one never more than it needs at once."""
    staging = Staging(100, 1000)
    assert staging.stats() == {"staging_bytes": 0, "staging_taken": 0}
    for _ in range(5):
        staging.give(staging.take(60))
    assert staging.stats() == {"staging_bytes": 100, "staging_taken": 0}


def test_bytes_are_bounded() -> None:
    """No more buffers than max_bytes allows, however many are wanted."""
    staging = Staging(100, 250)
    staging.take(1)
    staging.take(1)
    assert staging.max_buffers == 2
    with pytest.raises(ValueError, match="all 2 staging buffers"):
        staging.take(1)


def test_larger_message_than_a_buffer_is_refused() -> None:
    """A message never spills over."""
    with pytest.raises(ValueError, match="do not fit"):
        Staging(100, 1000).take(101)


def test_two_taken_buffers_do_not_overlap() -> None:
    """What is staged for one message cannot reach another."""
    staging = Staging(8, 16)
    first, second = staging.take(8), staging.take(8)
    first.fill_(1)
    second.fill_(2)
    assert first.tolist() == [1] * 8


def test_close_drops_everything() -> None:
    """After the channel's end no byte is held, not even in buffers that were taken."""
    staging = Staging(100, 1000)
    staging.take(10)
    staging.close()
    assert staging.stats() == {"staging_bytes": 0, "staging_taken": 0}


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_kv_view_has_the_wire_order(dtype: str, size: int) -> None:
    """Bytes on the wire are [layers, 2, heads, tokens, head_dim] in the source's dtype."""
    layout = layout_with(dtype=dtype)
    assert token_bytes(layout) == LAYOUT.token_elements * size
    data = torch.zeros(3 * token_bytes(layout), dtype=torch.uint8)
    kv = as_kv(data, layout)
    assert tuple(kv.shape) == (layout.num_layers, 2, layout.num_kv_heads, 3, layout.head_dim)
    kv[0, 0, 0, 1, 0] = 1.0
    assert data[: layout.head_dim * size].eq(0).all()
    assert data[layout.head_dim * size : layout.head_dim * size + size].ne(0).any()
