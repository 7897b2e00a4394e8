"""A step as ranks other than 0 get it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from services.engine.batch import BatchItem
from services.engine.packing import pack_step
from services.engine.tensor_parallel.step_message import decode_step, encode_step

BLOCK_SIZE = 4


@st.composite
def items(draw: st.DrawFn) -> list[BatchItem]:
    """Prompts and decodes, with and without history."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        tokens = draw(st.lists(st.integers(0, 300_000), min_size=1, max_size=9))
        start = draw(st.integers(0, 20))
        blocks = draw(st.lists(st.integers(0, 10**6), min_size=8, max_size=12))
        found.append(BatchItem(token_ids=tokens, start=start, block_ids=blocks))
    return found


@given(items())
def test_a_step_comes_as_it_went(batch: list[BatchItem]) -> None:
    """Every number of it; which rows are sampled stays with rank 0."""
    step = pack_step(batch, BLOCK_SIZE, torch.device("cpu"))
    found = decode_step(encode_step(step))
    assert torch.equal(found.input_ids, step.input_ids)
    assert torch.equal(found.position_ids, step.position_ids)
    assert torch.equal(found.logit_rows, step.logit_rows)
    assert torch.equal(found.attention.slot_mapping, step.attention.slot_mapping)
    for name in ("num_decodes", "query_lens", "cache_seqlens", "block_table"):
        assert getattr(found.attention, name) == getattr(step.attention, name)
