"""No deadlock between the tiers, whichever pool fills first, in any order of events."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.priority import Priority
from services.prefill.ahead import Ahead
from tests.harness.two_tiers import SIZE, Request, Tiers

MAX_PROMPT = 20


@st.composite
def clusters(draw: st.DrawFn) -> Tiers:
    """One or two workers a tier with pools that a single large request may fill, and up to a dozen requests."""
    num_prefill, num_decode = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    slots = draw(st.integers(2, 4))
    requests = [
        Request(
            key=key,
            prefill=draw(st.integers(0, num_prefill - 1)),
            decode=draw(st.integers(0, num_decode - 1)),
            num_prompt=draw(st.integers(1, MAX_PROMPT)),
            num_output=draw(st.integers(1, 8)),
            n=draw(st.integers(1, 2)),
            priority=draw(st.sampled_from(Priority)),
        )
        for key in range(draw(st.integers(1, 12)))
    ]
    largest = -(-MAX_PROMPT // SIZE)
    pools = draw(st.lists(st.integers(largest, 14), min_size=num_prefill, max_size=num_prefill))
    credit = draw(st.integers(0, 3))
    return Tiers(
        requests,
        prefill_blocks=pools,
        decode_blocks=draw(st.lists(st.integers(largest + 3, 14), min_size=num_decode, max_size=num_decode)),
        slots=slots,
        seats_ahead=draw(st.integers(0, 3)),
        ahead=[Ahead.beside(largest, prompts=credit, num_blocks=blocks) for blocks in pools],
    )


@settings(max_examples=150, deadline=None)
@given(tiers=clusters(), order=st.lists(st.integers(0, 10**6), max_size=120), leavers=st.sets(st.integers(0, 11)))
def test_every_request_ends_in_any_order_of_events(tiers, order, leavers):
    """Whatever the sizes, the order of messages and steps, and who leaves when: all end, and every block comes back."""
    for turn, choice in enumerate(order):
        actions = tiers.enabled()
        tiers.apply(*actions[choice % len(actions)])
        tiers.check()
        if turn in leavers and turn < len(tiers.requests):
            tiers.cancel(tiers.requests[turn])
    tiers.settle()
    assert all(request.is_over for request in tiers.requests)
    assert tiers.blocks_held == 0
    assert not any(line.num_held or line.num_waiting for line in tiers.seats)


def _crossed(ahead: Ahead) -> Tiers:
    """Two prompts run ahead and fill prefill; two others have all seats at decode and wait for prefill's blocks."""
    requests = [Request(key=key, prefill=0, decode=0, num_prompt=8) for key in range(4)]
    tiers = Tiers(requests, prefill_blocks=[4], decode_blocks=[16], slots=2, seats_ahead=0, ahead=[ahead])
    for name, keys in (("prefill_leg", (0, 1)), ("prefill_step", (0,)), ("decode_leg", (2, 3, 0, 1))):
        for key in keys:
            tiers.apply(name, key)
    tiers.settle()
    return tiers


def test_a_credit_without_reserve_would_deadlock():
    """Negative control: were those that run ahead allowed to fill the pool, the tiers would wait for each other."""
    assert not any(request.is_over for request in _crossed(Ahead(prompts=2, blocks=4)).requests)


def test_the_reserve_keeps_the_largest_prompt_from_waiting_for_those_ahead():
    """With room kept for the largest prompt the same crossing resolves by itself."""
    allowed = Ahead.beside(2, prompts=2, num_blocks=4)
    assert allowed.blocks == 2
    assert all(request.is_over for request in _crossed(allowed).requests)


def test_prefill_holds_no_blocks_for_whom_decode_has_no_seat():
    """With decode full, the prompts that hold blocks are those with a seat and the few that the credit allows."""
    requests = [Request(key=key, prefill=0, decode=0, num_prompt=4, num_output=10**6) for key in range(20)]
    allowed = Ahead.beside(1, prompts=2, num_blocks=100)
    tiers = Tiers(requests, prefill_blocks=[100], decode_blocks=[400], slots=4, seats_ahead=3, ahead=[allowed])
    for _ in range(30):
        for action in [action for action in tiers.enabled() if action in tiers.enabled()]:
            tiers.apply(*action)
        tiers.check()
    holding = [r for r in requests if "admitted" in r.marks and "fetched" not in r.marks]
    assert sum("seated" in r.marks for r in holding) == 3
    assert sum("seated" not in r.marks for r in holding) == tiers.prefill[0].stats().ahead == 2
    assert tiers.prefill_pools[0].stats().held == 5
    assert tiers.decode[0].stats().running == 4
