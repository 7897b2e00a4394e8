"""How tokens are drawn from logits."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import Internal
from services.common.sampling import SamplingParams
from services.engine.batch import SampleSpec
from services.engine.sampler import invert, sample_rows, uniform

GREEDY = SamplingParams(temperature=0.0)


def spec(sampling: SamplingParams, index: int = 0, choice: int = 0, **others: object) -> SampleSpec:
    """A sample of one token."""
    return SampleSpec(sampling=sampling, choice=choice, index=index, **others)  # type: ignore[arg-type]


def draw(logits: torch.Tensor, one: SampleSpec) -> int:
    """The token that one row of logits gives."""
    (result,) = sample_rows(logits[None], [(one,)])
    assert result.error is None, result.error
    return result.tokens[0].id


def rows(count: int, vocab: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def test_greedy_takes_the_first_of_equally_likely_tokens() -> None:
    """As `generate` does."""
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
    assert draw(logits, spec(GREEDY)) == 1
    assert draw(logits.to(torch.bfloat16), spec(GREEDY)) == 1


sampled_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 20]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    logprobs=st.sampled_from([None, 0, 3]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(sampled_params, st.integers(0, 15), st.integers(0, 5000)), min_size=1, max_size=7), st.randoms()
)
def test_batch_mates_do_not_matter(wanted: list[tuple[SamplingParams, int, int]], rng: object) -> None:
    """Whoever shares the batch, in whatever order, each row gets the token and logprobs that it gets alone."""
    specs = [spec(params, index, choice, prompt_ids=[1, 2], output_ids=[3, 3]) for params, choice, index in wanted]
    logits = rows(len(specs))
    order = list(range(len(specs)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    together = sample_rows(logits[order], [(specs[row],) for row in order])
    alone = [sample_rows(logits[row : row + 1], [(specs[row],)])[0] for row in order]
    assert [result.tokens for result in together] == [result.tokens for result in alone]
    assert all(result.tokens for result in together)


def test_frequencies_follow_the_distribution() -> None:
    """Chi-squared over 20,000 indices of one seed stays below the 99.9 % point of its distribution."""
    logits, count, temperature = rows(1, vocab=12)[0], 20_000, 0.7
    params = SamplingParams(temperature=temperature, seed=11)
    results = sample_rows(logits[None], [tuple(spec(params, index) for index in range(count))])
    found = Counter(token.id for token in results[0].tokens)
    expected = (logits.double() / temperature).softmax(-1) * count
    chi_squared = sum((found[token] - mean) ** 2 / mean for token, mean in enumerate(expected.tolist()))
    assert chi_squared < 31.3  # 11 degrees of freedom


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-53, 3)])
def test_filtered_tokens_are_never_drawn(number: float, token: int) -> None:
    """Not even by a random number that falls on the border of their empty share."""
    assert invert(torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64), [number]) == [token]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(any), st.integers(0, 2**53 - 1))
def test_any_number_draws_a_token_with_probability(weights: list[float], number: int) -> None:
    """Whatever the distribution and the number, rounding included, the token had a chance."""
    probs = torch.tensor([weights], dtype=torch.float64)
    (token,) = invert(probs, [number / 2**53])
    assert probs[0, token] > 0


def test_uniform_is_philox_and_keyed_by_all_three() -> None:
    """The number is the top 53 bits of Philox 4x64 under (seed, choice) at the index; another key, another number."""
    bits = np.random.Philox(key=7 + (2 << 64), counter=5).random_raw()
    assert uniform(7, 2, 5) == (int(bits) >> 11) / 2**53
    assert uniform(2**64 - 1, 0, 0) != uniform(2**64 - 2, 0, 0)
    numbers = {
        uniform(seed, choice, index) for seed in (0, 1, 2**64 - 1) for choice in (0, 1) for index in (0, 1, 4096)
    }
    assert len(numbers) == 18
    assert all(0 <= number < 1 for number in numbers)


def test_uniform_never_changes() -> None:
    """Workers of different versions continue each other's streams, so the numbers are part of the contract."""
    assert uniform(1234, 0, 0) == PINNED[0]
    assert uniform(2**64 - 1, 15, 100) == PINNED[1]


PINNED = (0.3347236812982095, 0.5369191231958258)


@given(st.floats(1e-30, 1e-3), st.integers(0, 1000))
def test_tiny_temperatures_are_greedy(temperature: float, seed: int) -> None:
    """No overflow, however small the temperature."""
    assert draw(torch.tensor([1.0, 5.0, 3.0]), spec(SamplingParams(temperature=temperature, seed=seed))) == 1


def test_a_huge_temperature_reaches_every_token() -> None:
    """At temperature 100 the distribution is nearly flat."""
    params = SamplingParams(temperature=100.0, seed=5)
    results = sample_rows(rows(1, vocab=8), [tuple(spec(params, index) for index in range(300))])
    assert {token.id for token in results[0].tokens} == set(range(8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(seed=1, top_p=0.9), SamplingParams(temperature=0.0, logprobs=2)]
)
def test_bad_logits_fail_their_item_alone(bad: float, params: SamplingParams) -> None:
    """A row with one NaN or infinity gives an error; its neighbours their tokens."""
    logits = rows(3)
    wanted = [result.tokens for result in sample_rows(logits, [(spec(params),)] * 3)]
    logits[1, 7] = bad
    results = sample_rows(logits, [(spec(params),)] * 3)
    assert isinstance(results[1].error, Internal)
    assert results[1].tokens == ()
    assert [results[0].tokens, results[2].tokens] == [wanted[0], wanted[2]]


def test_logits_of_minus_infinity_everywhere_fail() -> None:
    """Nothing can be chosen, and that is said."""
    (result,) = sample_rows(torch.full((1, 5), -math.inf), [(spec(GREEDY),)])
    assert isinstance(result.error, Internal)


def test_temperature_without_a_seed_fails() -> None:
    """A missing seed is an error of the item, not a hidden random number; greedy needs none."""
    results = sample_rows(rows(2), [(spec(SamplingParams(temperature=1.0)),), (spec(GREEDY),)])
    assert isinstance(results[0].error, Internal)
    assert "seed" in str(results[0].error)
    assert results[1].error is None


def test_everything_masked_fails() -> None:
    """min_tokens over a vocabulary of stop tokens leaves nothing to choose."""
    one = spec(GREEDY, stop_ids=(0, 1, 2), is_stop_allowed=False)
    (result,) = sample_rows(torch.zeros(1, 3), [(one,)])
    assert "min_tokens" in str(result.error)


def test_choices_of_one_row_differ_and_each_is_its_own_stream() -> None:
    """Several choices of one row: as if each choice had been drawn alone."""
    params = SamplingParams(temperature=1.5, seed=9, n=4)
    specs = [spec(params, choice=choice) for choice in range(4)]
    logits = rows(1, vocab=200)
    (result,) = sample_rows(logits, [specs])
    assert [token.id for token in result.tokens] == [draw(logits[0], one) for one in specs]
    assert len({token.id for token in result.tokens}) > 1


def test_logprobs_are_those_of_the_raw_model() -> None:
    """Natural logarithms before bias, penalties and temperature, best first; the chosen token's always."""
    logits = rows(1, vocab=30)
    params = SamplingParams(temperature=0.0, logprobs=4, logit_bias={17: 100.0}, repetition_penalty=2.0)
    (result,) = sample_rows(logits, [(spec(params, prompt_ids=list(range(30))),)])
    raw = logits[0].log_softmax(-1)
    (token,) = result.tokens
    assert token.id == 17
    assert token.logprob == pytest.approx(float(raw[17]), abs=1e-5)
    best = raw.topk(4)
    assert [one for one, _ in token.top_logprobs] == best.indices.tolist()
    assert [value for _, value in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_zero_gives_the_chosen_tokens_only() -> None:
    """Asking for 0 gives the chosen token's own and no list; asking for none gives neither."""
    params = [SamplingParams(temperature=0.0, logprobs=0), GREEDY]
    zero, none = (sample_rows(rows(1), [(spec(one),)])[0].tokens[0] for one in params)
    assert zero.logprob is not None
    assert zero.top_logprobs == ()
    assert none.logprob is None


@pytest.mark.parametrize("penalty", [0.01, 1e-30, 1e-38])
def test_a_penalty_that_overflows_gives_a_token_of_the_vocabulary(penalty: float) -> None:
    """However far a penalty lifts a logit, what is drawn is a token, and the lifted one."""
    sampling = SamplingParams(temperature=1.0, seed=1, repetition_penalty=penalty)
    logits = torch.tensor([1.0, 30.0, 2.0, -1.0])
    assert draw(logits, spec(sampling, prompt_ids=(1,))) == 1
