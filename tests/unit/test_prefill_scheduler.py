"""The prefill scheduler: chunks under a budget, first come first served, blocks given back exactly once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.blocks import BlockPool
from services.prefill.ahead import Ahead
from services.prefill.prompt import Prompt
from services.prefill.scheduler import PrefillScheduler

SIZE = 4


def make(num_blocks: int = 16, seqs: int = 4, budget: int = 8) -> tuple[BlockPool, PrefillScheduler]:
    pool = BlockPool(num_blocks, SIZE)
    return pool, PrefillScheduler(pool, max_num_seqs=seqs, max_num_batched_tokens=budget)


def run_to_end(scheduler: PrefillScheduler) -> list[list[tuple[int, int, int]]]:
    """Steps until nothing is planned; each step as (key, start, end) triples."""
    steps = []
    while chunks := scheduler.plan():
        steps.append([(chunk.prompt.key, chunk.start, chunk.end) for chunk in chunks])
        for chunk in chunks:
            scheduler.commit(chunk)
            if chunk.is_last:
                scheduler.release(chunk.prompt.key)
    return steps


def test_long_prompt_is_cut_to_the_budget():
    """A prompt longer than the budget takes several steps, none above the budget."""
    _, scheduler = make(budget=8)
    scheduler.submit(Prompt(key=1, token_ids=range(20)))
    assert run_to_end(scheduler) == [[(1, 0, 8)], [(1, 8, 16)], [(1, 16, 20)]]


def test_rest_of_the_budget_goes_to_the_next_prompt():
    """The last chunk of one prompt and the first of the next share a step."""
    _, scheduler = make(budget=8)
    scheduler.submit(Prompt(key=1, token_ids=range(10)))
    scheduler.submit(Prompt(key=2, token_ids=range(50, 60)))
    assert run_to_end(scheduler) == [[(1, 0, 8)], [(1, 8, 10), (2, 0, 6)], [(2, 6, 10)]]


def test_a_cached_prefix_is_not_computed_again():
    """The second of two equal prompts starts after the blocks of the first, its last token always computed."""
    _, scheduler = make(budget=32)
    scheduler.submit(Prompt(key=1, token_ids=range(12)))
    run_to_end(scheduler)
    scheduler.submit(Prompt(key=2, token_ids=range(12)))
    assert run_to_end(scheduler) == [[(2, 8, 12)]]


def test_a_prompt_waits_for_blocks_in_order():
    """Where blocks are short the head of the queue waits and nobody overtakes it."""
    _, scheduler = make(num_blocks=4, budget=32)
    scheduler.submit(Prompt(key=1, token_ids=range(12)))
    scheduler.submit(Prompt(key=2, token_ids=range(20, 30)))
    scheduler.submit(Prompt(key=3, token_ids=range(40, 42)))
    assert [chunk.prompt.key for chunk in scheduler.plan()] == [1]
    assert scheduler.stats().waiting == 2


def test_stopped_prompt_keeps_its_blocks_until_released():
    """After `stop` nothing is computed, but the blocks stay: a reader may still look at them."""
    pool, scheduler = make(num_blocks=4)
    scheduler.submit(Prompt(key=1, token_ids=range(16)))
    for chunk in scheduler.plan():
        scheduler.commit(chunk)
    scheduler.stop(1)
    assert scheduler.plan() == []
    assert pool.stats().held == 4
    scheduler.release(1)
    assert pool.stats().held == 0


@settings(max_examples=150, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=12),
    budget=st.integers(1, 40),
    seqs=st.integers(1, 5),
    stops=st.sets(st.integers(0, 11)),
)
def test_every_prompt_is_computed_once_within_bounds(prompts, budget, seqs, stops):
    """Whatever the load: each position is computed at most once and in order, budgets hold, all blocks come back."""
    pool, scheduler = make(num_blocks=10, seqs=seqs, budget=budget)
    for key, tokens in enumerate(prompts):
        scheduler.submit(Prompt(key=key, token_ids=tokens))
    position: dict[int, int] = {}
    finished: set[int] = set()
    for step in range(2000):
        chunks = scheduler.plan()
        if not chunks:
            break
        assert sum(chunk.end - chunk.start for chunk in chunks) <= budget
        assert len(chunks) <= seqs
        for chunk in chunks:
            key = chunk.prompt.key
            assert chunk.start == position.get(key, chunk.prompt.cached)
            position[key] = chunk.end
            scheduler.commit(chunk)
            if chunk.is_last:
                finished.add(key)
                scheduler.release(key)
        if step in stops and step not in finished and step < len(prompts):
            scheduler.stop(step)
            scheduler.release(step)
            finished.add(step)
        pool.check()
    assert finished == set(range(len(prompts)))
    assert pool.stats().held == 0


def test_a_higher_rank_waits_in_front():
    """Prompts are admitted by rank, and in order of arrival where that is equal."""
    _, scheduler = make(seqs=1, budget=32)
    for key, rank in ((1, 5.0), (2, 3.0), (3, 5.0), (4, 1.0)):
        scheduler.submit(Prompt(key=key, token_ids=range(key * 10, key * 10 + 4), rank=rank))
    assert [step[0][0] for step in run_to_end(scheduler)] == [4, 2, 1, 3]


def test_a_prompt_that_nobody_awaits_keeps_nobody_waiting():
    """Beyond the credit a prompt waits until it is asked for; those behind it that are asked for go past."""
    _, scheduler = make(budget=32)
    scheduler.submit(Prompt(key=1, token_ids=range(4), is_awaited=False))
    scheduler.submit(Prompt(key=2, token_ids=range(10, 14)))
    assert run_to_end(scheduler) == [[(2, 0, 4)]]
    scheduler.note_awaited(1, is_awaited=True)
    assert run_to_end(scheduler) == [[(1, 0, 4)]]


def test_a_prompt_loses_its_place_with_whoever_awaited_it():
    """When the asking worker goes away before there was room, the prompt stays where it is until another one asks."""
    _, scheduler = make(budget=32)
    scheduler.submit(Prompt(key=1, token_ids=range(4)))
    scheduler.note_awaited(1, is_awaited=False)
    assert scheduler.plan() == []
    scheduler.note_awaited(1, is_awaited=True)
    assert run_to_end(scheduler) == [[(1, 0, 4)]]


def test_the_credit_counts_prompts_and_leaves_room_for_the_largest():
    """So many unasked prompts hold blocks as the credit says, and all but the largest prompt's room at most."""
    pool = BlockPool(10, SIZE)
    ahead = Ahead.beside(6, prompts=3, num_blocks=10)
    scheduler = PrefillScheduler(pool, max_num_seqs=8, max_num_batched_tokens=99, ahead=ahead)
    for key, tokens in enumerate((8, 12, 4, 4)):
        scheduler.submit(Prompt(key=key, token_ids=range(key * 50, key * 50 + tokens), is_awaited=False))
    assert [chunk.prompt.key for chunk in scheduler.plan()] == [0, 2, 3]
    assert scheduler.stats().ahead == 3
    scheduler.note_awaited(3, is_awaited=True)
    assert scheduler.stats().ahead == 2
    scheduler.submit(Prompt(key=9, token_ids=range(300, 324)))
    assert 9 in [chunk.prompt.key for chunk in scheduler.plan()]
