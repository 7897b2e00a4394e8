"""One stream of tokens out of two legs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Internal
from services.common.types import ChoiceTokens, FinishReason, Token
from services.frontend.merge import TokenMerge

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def part(start: int, *ids: int, choice: int = 0, finish: FinishReason | None = None) -> ChoiceTokens:
    """Tokens of a choice from index `start` on."""
    return ChoiceTokens(choice, tuple(Token(token, start + place) for place, token in enumerate(ids)), finish)


def test_second_copy_is_dropped_and_counted() -> None:
    """The first token comes from both legs and is shown once."""
    merge = TokenMerge(1)
    assert merge.add([part(0, 7)]) == [part(0, 7)]
    assert merge.add([part(0, 7)]) == []
    assert merge.add([part(0, 7, 8)]) == [part(1, 8)]
    assert merge.duplicates == 2


@given(tokens=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=3), data=st.data())
def test_any_interleaving_gives_every_token_once(tokens: list[list[int]], data: st.DataObject) -> None:
    """Whatever the order of the two legs' messages, each choice comes out complete, in order and once."""
    prefill = [part(0, ids[0], choice=c, finish=STOP if len(ids) == 1 else None) for c, ids in enumerate(tokens)]
    decode = [
        part(place, token, choice=c, finish=STOP if place + 1 == len(ids) else None)
        for c, ids in enumerate(tokens)
        for place, token in enumerate(ids)
    ]
    merge = TokenMerge(len(tokens))
    out: list[ChoiceTokens] = []
    while prefill or decode:
        leg = data.draw(st.sampled_from([leg for leg in (prefill, decode) if leg]))
        out += merge.add([leg.pop(0)])
    for choice, ids in enumerate(tokens):
        parts = [each for each in out if each.choice == choice]
        assert [token.id for each in parts for token in each.tokens] == ids
        assert [token.index for each in parts for token in each.tokens] == list(range(len(ids)))
        assert [each.finish for each in parts if each.finish] == [STOP]
    assert merge.is_finished


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (part(0, 7), part(2, 8)),
        (part(0, 7), part(0, 8)),
        (part(0, 7, finish=STOP), part(1, 8)),
        (part(0, 7, finish=STOP), part(0, 7, finish=LENGTH)),
        (part(0, 7, 8), part(0, 7, finish=STOP)),
        (part(0, 7), part(0, 7, choice=1)),
        (part(0, 7), part(0, 7, choice=-1)),
    ],
    ids=["gap", "other id", "after the end", "other end", "end before the end", "no such choice", "negative choice"],
)
def test_what_does_not_fit_is_an_error(first: ChoiceTokens, second: ChoiceTokens) -> None:
    """A gap, a contradiction or a token after the end stops the request instead of showing a wrong token."""
    merge = TokenMerge(1)
    merge.add([first])
    with pytest.raises(Internal) as caught:
        merge.add([second])
    assert caught.value.details == {"kind": "merge_conflict"}


def test_end_may_come_without_a_token() -> None:
    """A finish reason alone ends a choice."""
    merge = TokenMerge(1)
    merge.add([part(0, 7)])
    assert merge.add([part(1, finish=LENGTH)]) == [ChoiceTokens(0, (), LENGTH)]
    assert merge.is_finished


@pytest.mark.parametrize(
    "reported",
    [
        part(-1, 7),
        part(0, finish=STOP),
        part(0, 7, finish=LENGTH),
        part(0, 7, 8, 9, finish=LENGTH),
        part(0, 7, 8, 9),
    ],
    ids=["a negative index", "no token", "too few for their number", "too many", "too many, going on"],
)
def test_what_no_worker_could_say_is_a_conflict(reported: ChoiceTokens) -> None:
    """Of a choice that may have two tokens; nothing of it is shown as an answer."""
    merge = TokenMerge(1)
    merge.max_tokens = 2
    with pytest.raises(Internal):
        merge.add([reported])


def test_a_choice_may_stop_early_or_be_full() -> None:
    """Two tokens of two are its length; fewer need another reason."""
    for ids, finish in (((7,), STOP), ((7, 8), LENGTH)):
        merge = TokenMerge(1)
        merge.max_tokens = 2
        assert merge.add([part(0, *ids, finish=finish)]) == [part(0, *ids, finish=finish)]
        assert merge.is_finished
