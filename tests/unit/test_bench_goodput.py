"""The search for goodput: which rates it tries, where it ends, and what it makes of its probes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.clusters import Variant, parse_variant
from benchmarks.goodput import summed_up
from benchmarks.rate_search import RateSearch


def search(border: float, first: float = 1.0, precision: float = 0.1, probes: int = 100) -> tuple[RateSearch, int]:
    """A finished search of a target that meets every rate up to `border`, and how many rates it tried."""
    found = RateSearch(first, precision, probes)
    tried = 0
    while (rate := found.next()) is not None:
        found.note(rate, is_met=rate <= border)
        tried += 1
    return found, tried


@given(border=st.floats(0.01, 1000), first=st.floats(0.01, 1000), precision=st.floats(0.01, 1))
def test_the_search_ends_close_to_the_border(border: float, first: float, precision: float) -> None:
    """The border lies between what was met and what was missed, and those are as close as asked for."""
    found, tried = search(border, first, precision)
    assert found.met <= border < found.missed <= found.met * (1 + precision)
    assert tried <= 30


def test_it_doubles_until_it_misses_and_then_takes_the_geometric_mean() -> None:
    """By hand: 1, 2 and 4 are met, 8 is missed, and the next is in the middle of the factors."""
    found = RateSearch(1.0, 0.1, 10)
    for rate in (1.0, 2.0, 4.0, 8.0):
        assert found.next() == rate
        found.note(rate, is_met=rate < 8)
    assert found.next() == pytest.approx(32**0.5)


def test_a_target_that_meets_nothing_is_given_up() -> None:
    """The number of probes is bounded however far away the border is."""
    found, tried = search(0.0, probes=7)
    assert (found.met, tried) == (0.0, 7)


def probe(rate: float, attained: float) -> dict[str, float]:
    """A probe as far as the summary needs it."""
    return {"request_rate": rate, "slo_attainment": attained}


def test_goodput_is_below_every_missed_rate() -> None:
    """A rate that was met by luck above one that was missed does not count."""
    probes = [probe(1, 1.0), probe(2, 0.92), probe(4, 0.8), probe(5, 0.91)]
    found = summed_up(probes, 0.9)
    assert (found["goodput"], found["missed_rate"], found["at_goodput"]) == (2, 4, probes[1])
    assert found["probes"] == probes


def test_goodput_without_a_border_says_so() -> None:
    """Nothing met is 0; nothing missed is a lower bound, told by the missing rate."""
    assert summed_up([probe(1, 0.5)], 0.9) == {
        "goodput": 0.0,
        "missed_rate": 1,
        "at_goodput": None,
        "probes": [probe(1, 0.5)],
    }
    assert summed_up([probe(1, 1.0)], 0.9)["missed_rate"] is None


@pytest.mark.parametrize(
    ("text", "variant"),
    [("split", Variant("split")), ("colocated", Variant("colocated")), ("colocated-256", Variant("colocated", 256))],
)
def test_a_cluster_may_have_a_chunk_size(text: str, variant: Variant) -> None:
    """It limits the steps of whoever computes prompts."""
    assert parse_variant(text) == variant
    assert [str(value) for value in variant.settings().values() if "256" in str(value)] == (
        ["max-num-batched-tokens=256"] if variant.chunk_tokens else []
    )


@pytest.mark.parametrize("text", ["", "both", "split-", "split-x", "colocated-0", "colocated--5"])
def test_a_wrong_cluster_is_named(text: str) -> None:
    """The message shows what was written."""
    with pytest.raises(ValueError, match=repr(text)):
        parse_variant(text)
