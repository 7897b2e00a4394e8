"""When benchmark requests arrive, how long they are, and what a trace says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.arrivals import at_once, poisson_arrivals
from benchmarks.plan import Planned, Shape, make_plan, ordinary_tokens, read_trace
from benchmarks.span import Span, parse_span


@given(rate=st.floats(0.01, 1000), count=st.integers(0, 100), seed=st.integers())
def test_arrivals_begin_at_zero_and_never_go_back(rate: float, count: int, seed: int) -> None:
    """As many as asked for, in order, and the same ones for the same seed."""
    arrivals = poisson_arrivals(rate, count, seed)
    assert len(arrivals) == count
    assert arrivals[:1] == (0.0,)[:count]
    assert list(arrivals) == sorted(arrivals)
    assert arrivals == poisson_arrivals(rate, count, seed)


def test_arrivals_come_at_the_rate_and_vary_as_a_poisson_process() -> None:
    """Gaps have the mean 1/rate, and their standard deviation equals their mean."""
    arrivals = poisson_arrivals(20.0, 20_001, 3)
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.05, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)


def test_a_rate_of_nothing_is_an_error() -> None:
    """It would never send."""
    with pytest.raises(ValueError, match="above 0"):
        poisson_arrivals(0.0, 1, 0)


def test_a_plan_keeps_to_its_spans_and_its_seed() -> None:
    """Lengths lie in their ranges, vary, and are the same for the same seed."""
    plan = make_plan(at_once(200), [Shape(Span(3, 9), Span(4, 4))], seed=1, concurrency=8)
    assert plan.concurrency == 8
    assert {request.prompt_tokens for request in plan.requests} == set(range(3, 10))
    assert {request.output_tokens for request in plan.requests} == {4}
    assert plan.longest == 13
    assert plan == make_plan(at_once(200), [Shape(Span(3, 9), Span(4, 4))], seed=1, concurrency=8)
    assert plan != make_plan(at_once(200), [Shape(Span(3, 9), Span(4, 4))], seed=2, concurrency=8)


@given(count=st.integers(1, 200), share=st.floats(0, 1), seed=st.integers())
def test_a_mixed_plan_keeps_its_shares(count: int, share: float, seed: int) -> None:
    """As many long prompts as their share says, whatever the seed, and all others are of the first shape."""
    shapes = [Shape(Span(2, 3), Span(5, 5), 1 - share), Shape(Span(90, 99), Span(1, 1), share)]
    requests = make_plan(at_once(count), shapes, seed).requests
    assert sum(request.prompt_tokens >= 90 for request in requests) == round(share * count)
    assert all((request.prompt_tokens < 4) == (request.output_tokens == 5) for request in requests)


def test_a_plan_needs_a_request() -> None:
    """Nothing to send is an error, whoever asked for it."""
    with pytest.raises(ValueError, match="no request"):
        make_plan((), [Shape(Span(1, 1), Span(1, 1))], seed=0)
    with pytest.raises(ValueError, match="no request"):
        read_trace(["", "  "])


def test_a_trace_is_sorted_and_begins_at_zero() -> None:
    """Lines may come in any order and at any time of day; further keys do not disturb."""
    lines = [
        '{"arrival_s": 12.5, "prompt_tokens": 7, "output_tokens": 2, "user": 3}\n',
        "\n",
        '{"arrival_s": 10, "prompt_tokens": 5, "output_tokens": 1}\n',
    ]
    assert read_trace(lines).requests == (Planned(0.0, 5, 1), Planned(2.5, 7, 2))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"arrival_s": 0, "prompt_tokens": 5}',
        '{"arrival_s": 0, "prompt_tokens": 0, "output_tokens": 1}',
        '{"arrival_s": -1, "prompt_tokens": 1, "output_tokens": 1}',
        '{"arrival_s": NaN, "prompt_tokens": 1, "output_tokens": 1}',
    ],
)
def test_a_wrong_line_is_named(line: str) -> None:
    """The message says which line of the trace it is."""
    with pytest.raises(ValueError, match="trace line 2"):
        read_trace(['{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}', line])


@pytest.mark.parametrize(("text", "span"), [("128", Span(128, 128)), ("64:512", Span(64, 512))])
def test_a_span_is_a_count_or_two(text: str, span: Span) -> None:
    """It also prints as it is written."""
    assert parse_span(text) == span
    assert str(span) == text


@pytest.mark.parametrize("text", ["", "x", "0", "5:4", "1:", ":1", "1:2:3", "1.5"])
def test_a_wrong_span_is_named(text: str) -> None:
    """The message shows what was written."""
    with pytest.raises(ValueError, match=repr(text)):
        parse_span(text)


def test_prompts_hold_no_special_tokens() -> None:
    """Neither the first ids of the vocabulary nor those that end an answer."""
    assert ordinary_tokens(22, [1, 20], first=18) == [18, 19, 21]
