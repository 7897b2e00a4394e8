"""How items become one row of tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.common.sampling import SamplingParams
from services.engine.batch import BatchItem, SampleSpec
from services.engine.packing import pack_step

CPU = torch.device("cpu")
SPEC = SampleSpec(sampling=SamplingParams(temperature=0.0), choice=0, index=0)


@st.composite
def batches(draw: st.DrawFn) -> list[BatchItem]:
    items: list[BatchItem] = []
    for number in range(draw(st.integers(1, 8))):
        start, fed = draw(st.integers(0, 40)), draw(st.integers(1, 12))
        spare = draw(st.integers(0, 3))
        count = -(-(start + fed) // 4) + spare
        samples = (SPEC,) * draw(st.integers(0, 2))
        ids = [1000 * number + offset for offset in range(fed)]
        items.append(
            BatchItem(token_ids=ids, start=start, block_ids=range(50 * number, 50 * number + count), samples=samples)
        )
    return items


@given(batches())
def test_every_token_keeps_its_position_slot_and_owner(items: list[BatchItem]) -> None:
    """Each fed token is in the row once, at its position and its slot, next to its request's others."""
    packed = pack_step(items, 4, CPU)
    row = list(
        zip(
            packed.input_ids[0].tolist(),
            packed.position_ids[0].tolist(),
            packed.attention.slot_mapping.tolist(),
            strict=True,
        )
    )
    wanted = [
        [
            (token, item.start + offset, item.block_ids[(item.start + offset) // 4] * 4 + (item.start + offset) % 4)
            for offset, token in enumerate(item.token_ids)
        ]
        for item in items
    ]
    first = 0
    for count, length in zip(packed.attention.query_lens, packed.attention.cache_seqlens, strict=True):
        part = row[first : first + count]
        assert part in wanted
        assert length == part[-1][1] + 1
        first += count
    assert sorted(row) == sorted(token for part in wanted for token in part)


@given(batches())
def test_one_token_items_come_first_by_length(items: list[BatchItem]) -> None:
    """The first num_decodes requests feed one token each, shorter ones first; the others feed more."""
    attention = pack_step(items, 4, CPU).attention
    decodes = attention.query_lens[: attention.num_decodes]
    assert set(decodes) <= {1}
    assert 1 not in attention.query_lens[attention.num_decodes :]
    lengths = attention.cache_seqlens[: attention.num_decodes]
    assert list(lengths) == sorted(lengths)


@given(batches())
def test_logits_are_asked_for_at_the_last_token_of_sampled_items(items: list[BatchItem]) -> None:
    """Rows of logits lead back to the items that sample, at their last fed token."""
    packed = pack_step(items, 4, CPU)
    assert sorted(packed.sampled) == [index for index, item in enumerate(items) if item.samples]
    ids = packed.input_ids[0, packed.logit_rows].tolist()
    assert len(ids) == max(1, len(packed.sampled))
    if packed.sampled:
        assert ids == [items[index].token_ids[-1] for index in packed.sampled]


@pytest.mark.parametrize(("fed", "blocks"), [(0, 1), (5, 1), (1, 0)])
def test_items_without_tokens_or_blocks_are_refused(fed: int, blocks: int) -> None:
    """An item that feeds nothing, or more than its blocks hold, is a bug of the scheduler and raises."""
    with pytest.raises(ValueError, match="at least one token"):
        pack_step([BatchItem(token_ids=[1] * fed, start=0, block_ids=list(range(blocks)))], 4, CPU)
