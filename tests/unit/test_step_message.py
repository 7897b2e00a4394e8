"""A step as ranks other than 0 get it."""

from dataclasses import fields, replace

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
    """Every field of it, also one that is added later; which rows are sampled stays with rank 0."""
    step = pack_step(batch, BLOCK_SIZE, torch.device("cpu"))
    found = decode_step(encode_step(step))
    assert found.sampled == ()
    parts = ((found, replace(step, sampled=())), (found.attention, step.attention))
    for one, other in parts:
        for name in {field.name for field in fields(one)} - {"attention"}:
            got, wanted = getattr(one, name), getattr(other, name)
            assert torch.equal(got, wanted) if isinstance(wanted, torch.Tensor) else got == wanted, name
