"""Waiting prompts: one order by rank and arrival, whoever awaits them, and sums that stay right."""

from hypothesis import given
from hypothesis import strategies as st

from services.prefill.prompt import Prompt
from services.prefill.waiting import WaitingPrompts

KEYS = st.integers(0, 9)
EVENTS = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("await"), KEYS, st.booleans()),
    st.tuples(st.just("remove"), KEYS, st.just(False)),
)


@given(st.lists(EVENTS, max_size=40))
def test_order_and_sums_hold_whatever_comes_and_goes(events: list[tuple[str, int, bool]]):
    """A stable sort by rank says who comes when; the tokens are those of who is there; each prompt knows its state."""
    waiting, there = WaitingPrompts(), dict[int, Prompt]()
    awaited: set[int] = set()
    for index, (event, number, is_awaited) in enumerate(events):
        key = number if event != "add" else index
        if event == "add":
            there[key] = Prompt(key=key, token_ids=range(index + 1), rank=float(number), is_awaited=is_awaited)
            waiting.add(there[key])
        elif event == "await":
            waiting.note_awaited(key, is_awaited=is_awaited)
        else:
            waiting.remove(key)
            there.pop(key, None)
        if event != "remove" and key in there:
            (awaited.add if is_awaited else awaited.discard)(key)
    in_order = sorted(there.values(), key=lambda prompt: prompt.rank)
    assert list(waiting.in_order(lambda: True)) == in_order
    assert list(waiting.in_order(lambda: False)) == [prompt for prompt in in_order if prompt.key in awaited]
    assert all(prompt.is_awaited == (prompt.key in awaited) for prompt in in_order)
    assert len(waiting) == len(there)
    assert waiting.tokens == sum(len(prompt.token_ids) for prompt in in_order)


def test_those_that_nobody_awaits_end_with_the_credit():
    """Credit that is spent on one of them ends their line at once; the awaited ones behind it are still there."""
    waiting, seen = WaitingPrompts(), list[int]()
    for key in range(6):
        waiting.add(Prompt(key=key, token_ids=range(4), rank=float(key), is_awaited=key % 2 == 1))
    for prompt in waiting.in_order(lambda: not seen):
        seen.append(prompt.key)
    assert seen == [0, 1, 3, 5]
