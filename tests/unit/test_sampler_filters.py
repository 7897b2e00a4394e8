"""Filters and penalties against transformers' own logits processors, and where their ties are left open."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.common.sampling import SamplingParams
from services.engine import filters
from services.engine.batch import SampleSpec
from services.engine.filters import filter_rows
from services.engine.penalties import adjust_row, needs_adjusting
from services.engine.sampler import temper

VOCAB = 300


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def ours(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution that a token is drawn from."""
    probs = temper(logits, [params.temperature])
    filter_rows(probs, [params])
    return probs / probs.sum(-1, keepdim=True)


def theirs(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The same from transformers, in float64."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    return chain(torch.zeros(1, 1, dtype=torch.long), logits.double()).softmax(-1)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.2, 0.9, 1.0, 3.0]),
    st.sampled_from([0, 1, 2, 40, 299, 300, 5000]),
    st.sampled_from([0.01, 0.3, 0.8, 0.95, 0.999, 1.0]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_filtered_distributions_equal_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Any combination keeps the same tokens with the same probabilities."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = logits_of(seed)
    torch.testing.assert_close(ours(logits, params), theirs(logits, params), atol=1e-12, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.9, 0.99, 0.99999]))
def test_a_nucleus_wider_than_the_first_look_is_the_same(seed: int, top_p: float) -> None:
    """Looking at few probabilities first is a matter of speed alone; rows that need more get it, the others stay."""
    params = [SamplingParams(top_p=top_p), SamplingParams(top_p=0.1), SamplingParams(top_p=top_p, top_k=7)]
    logits = torch.cat([logits_of(seed) / 8, logits_of(seed + 1), logits_of(seed + 2)])
    wide, narrow = (temper(logits, [1.0] * 3) for _ in range(2))
    filter_rows(wide, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "FIRST_LOOK", 4)
        filter_rows(narrow, params)
    assert torch.equal(wide, narrow)
    assert int((wide[0] > 0).sum()) > 4


@given(st.integers(1, 9), st.integers(0, 100))
def test_top_k_keeps_exactly_k_and_the_lowest_ids_of_equals(top_k: int, seed: int) -> None:
    """Equal probabilities at the border: exactly k tokens stay, those with the lowest ids."""
    levels = torch.randint(0, 3, (1, 12), generator=torch.Generator().manual_seed(seed)).float()
    kept = ours(levels, SamplingParams(top_k=top_k))[0].nonzero()[:, 0].tolist()
    by_rank = sorted(range(12), key=lambda token: (-float(levels[0, token]), token))
    assert kept == sorted(by_rank[:top_k])


def test_top_p_keeps_the_smallest_set_of_equals() -> None:
    """Four equal tokens: a half needs two, a bit more needs three, and the lowest ids stay."""
    flat = torch.zeros(1, 4)
    assert ours(flat, SamplingParams(top_p=0.5))[0].tolist() == [0.5, 0.5, 0, 0]
    assert ours(flat, SamplingParams(top_p=0.51))[0].count_nonzero() == 3
    assert ours(flat, SamplingParams(top_p=0.01))[0].tolist() == [1, 0, 0, 0]


def test_rows_are_filtered_each_by_its_own_rules() -> None:
    """A batch of different rules equals each row alone."""
    params = [
        SamplingParams(top_k=3),
        SamplingParams(),
        SamplingParams(top_p=0.4),
        SamplingParams(top_k=60, top_p=0.7, min_p=0.05),
        SamplingParams(min_p=0.3),
    ]
    logits = torch.cat([logits_of(seed) for seed in range(len(params))])
    together = temper(logits, [1.0] * len(params))
    filter_rows(together, params)
    for row, one in enumerate(params):
        alone = temper(logits[row : row + 1], [1.0])
        filter_rows(alone, [one])
        assert torch.equal(together[row], alone[0])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
    st.lists(st.integers(0, VOCAB - 1), max_size=30),
    st.sampled_from([0.5, 1.3, 100.0]),
    st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), min_size=1, max_size=5),
)
def test_bias_repetition_and_min_tokens_equal_transformers(
    seed: int, prompt: list[int], output: list[int], penalty: float, bias: dict[int, float]
) -> None:
    """The same scores as transformers' processors in transformers' own order."""
    logits, stop = logits_of(seed), 5
    params = SamplingParams(repetition_penalty=penalty, logit_bias=bias)
    spec = SampleSpec(
        sampling=params,
        choice=0,
        index=0,
        prompt_ids=prompt,
        output_ids=output,
        stop_ids=(stop,),
        is_stop_allowed=False,
    )
    chain = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()]),
            RepetitionPenaltyLogitsProcessor(penalty),
            MinLengthLogitsProcessor(len(prompt) + len(output) + 1, stop),
        ]
    )
    wanted = chain(torch.tensor([prompt + output]), logits.clone())[0]
    adjusted = logits[0].clone()
    adjust_row(adjusted, spec)
    torch.testing.assert_close(adjusted, wanted)


def test_presence_and_frequency_count_the_output_only() -> None:
    """Presence once, frequency as often as the token is in the output; the prompt counts for neither."""
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    spec = SampleSpec(sampling=params, choice=0, index=4, prompt_ids=[0, 1], output_ids=[2, 3, 3, 3])
    adjusted = torch.zeros(5)
    adjust_row(adjusted, spec)
    assert adjusted.tolist() == [0, 0, -0.75, -1.25, 0]


def test_plain_requests_need_no_adjusting() -> None:
    """Requests without penalties stay on the fast path; each option leaves it."""
    plain = SamplingParams(temperature=0.3)
    assert not needs_adjusting(SampleSpec(sampling=plain, choice=0, index=0, stop_ids=(1,)))
    assert needs_adjusting(SampleSpec(sampling=plain, choice=0, index=0, stop_ids=(1,), is_stop_allowed=False))
    assert needs_adjusting(SampleSpec(sampling=SamplingParams(presence_penalty=-1.0), choice=0, index=0))
    assert needs_adjusting(SampleSpec(sampling=SamplingParams(logit_bias={1: 1.0}), choice=0, index=0))
