"""The decode scheduler: continuous batching, forks, preemption; every run ends and every block comes back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.decode.plan import Run
from services.decode.scheduler import DecodeScheduler, DecodeStats
from services.engine.blocks import BlockPool

SIZE = 4


def make(num_blocks: int = 16, seqs: int = 4, budget: int = 32) -> tuple[BlockPool, DecodeScheduler]:
    pool = BlockPool(num_blocks, SIZE)
    return pool, DecodeScheduler(pool, max_num_seqs=seqs, max_num_batched_tokens=budget)


def local(key: int, num_prompt: int, *, n: int = 1) -> Run:
    return Run(key=key, tokens=[key * 100 + i for i in range(num_prompt)], num_prompt=num_prompt, num_choices=n)


def fetched(key: int, num_prompt: int, *, n: int = 1) -> Run:
    run = local(key, num_prompt, n=n)
    run.is_fetched = True
    return run


def advance(scheduler: DecodeScheduler, *, stop_at: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """Runs one step; choices end when they reach `stop_at[key]` tokens. Returns (key, choice, start, end)."""
    plan = scheduler.plan()
    for share in plan.shares:
        run = share.run
        scheduler.commit(share)
        if not share.is_sampling:
            continue
        if not run.is_forked:
            scheduler.fork(run, {choice: 7 for choice in range(run.num_choices)})
        elif len(run.tokens) + 1 >= stop_at[run.key]:
            scheduler.finish(run)
        else:
            run.tokens.append(7)
    return [(share.run.key, share.run.choice, share.start, share.end) for share in plan.shares]


def test_running_choices_come_before_prompts():
    """A long prompt computed here never delays the running choices: they are in every step."""
    _, scheduler = make(budget=6)
    scheduler.submit(local(1, 3))
    advance(scheduler, stop_at={1: 99})
    scheduler.submit(local(2, 12))
    for _ in range(3):
        shares = advance(scheduler, stop_at={1: 99, 2: 99})
        assert shares[0][0] == 1
        assert sum(end - start for _, _, start, end in shares) <= 6


def test_a_fetched_run_is_reserved_and_never_computed():
    """A handed-over prompt gets its blocks, and after joining only new positions are fed."""
    _, scheduler = make()
    scheduler.submit(fetched(1, 10))
    plan = scheduler.plan()
    assert [run.key for run in plan.reserved] == [1]
    assert plan.shares == []
    assert len(plan.reserved[0].block_ids) == 3
    scheduler.join(1, {0: 7})
    assert advance(scheduler, stop_at={1: 99}) == [(1, 0, 10, 11)]


def test_choices_share_the_prompt_and_copy_on_write():
    """Four choices share full prompt blocks; the partial one is copied for all but one of them."""
    pool, scheduler = make()
    scheduler.submit(fetched(1, 10, n=4))
    scheduler.plan()
    scheduler.join(1, dict.fromkeys(range(4), 7))
    plan = scheduler.plan()
    assert len(plan.copies) == 3
    assert pool.stats().held == 2 + 4
    assert len({share.run.block_ids[2] for share in plan.shares}) == 4


def test_the_youngest_is_preempted_and_computed_again():
    """When blocks run out the oldest run moves on, the youngest waits in front and starts over from its tokens."""
    pool, scheduler = make(num_blocks=5)
    scheduler.submit(local(1, 7))
    scheduler.submit(local(2, 7))
    preempted = []
    for _ in range(8):
        plan = scheduler.plan()
        preempted += [run.key for run in plan.preempted]
        for share in plan.shares:
            scheduler.commit(share)
            if share.is_sampling and not share.run.is_forked:
                scheduler.fork(share.run, {0: 7})
            elif share.is_sampling:
                share.run.tokens.append(7)
    assert set(preempted) == {2}
    assert scheduler.stats().waiting == 1
    scheduler.cancel(1)
    assert advance(scheduler, stop_at={2: 99})[0][:2] == (2, 0)
    pool.check()


def test_cancel_gives_all_blocks_back_in_every_state():
    """A cancelled request leaves nothing behind, whether it waits, loads or runs."""
    pool, scheduler = make(seqs=2)
    for key in (1, 2, 3):
        scheduler.submit(fetched(key, 8))
    scheduler.plan()
    scheduler.join(1, {0: 7})
    for key in (1, 2, 3):
        scheduler.cancel(key)
    assert pool.stats().held == 0
    assert scheduler.stats().waiting == scheduler.stats().loading == scheduler.stats().running == 0


def test_a_higher_rank_is_admitted_first_and_preempted_last():
    """The lowest rank gets blocks first; when they run out, the last rank gives its own back, however long it runs."""
    _, scheduler = make(num_blocks=5, seqs=2)
    for key, rank in ((1, 9.0), (2, 5.0), (3, 1.0)):
        run = fetched(key, 7)
        run.rank = rank
        scheduler.submit(run)
    assert [run.key for run in scheduler.plan().reserved] == [3, 2]
    scheduler.join(2, {0: 7})
    scheduler.join(3, {0: 7})
    preempted = []
    for _ in range(3):
        plan = scheduler.plan()
        preempted += [run.key for run in plan.preempted]
        for share in plan.shares:
            scheduler.commit(share)
            share.run.tokens.append(7)
    assert preempted == [2]


def test_outstanding_tokens_are_those_to_compute_here():
    """A waiting prompt counts in full until it is cancelled or computed; one whose KV is to be fetched does not."""
    _, scheduler = make(budget=6)
    for run in (local(1, 10), local(2, 5), fetched(3, 7)):
        scheduler.submit(run)
    assert scheduler.stats().outstanding_tokens == 15
    scheduler.cancel(2)
    assert scheduler.stats().outstanding_tokens == 10
    for share in scheduler.plan().shares:
        scheduler.commit(share)
    assert scheduler.stats() == DecodeStats(waiting=0, loading=1, running=1, outstanding_tokens=3)


requests = st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(1, 3), st.booleans())


@settings(max_examples=200, deadline=None)
@given(load=st.lists(requests, min_size=1, max_size=10), budget=st.integers(3, 24), cancels=st.sets(st.integers(0, 60)))
def test_every_run_ends_whatever_the_load(load, budget, cancels):
    """No load starves or leaks: all choices reach their end, positions are fed in order, slots and budget hold."""
    pool, scheduler = make(num_blocks=9, seqs=3, budget=budget)
    stop_at: dict[int, int] = {}
    left: dict[int, int] = {}
    for key, (num_prompt, num_output, n, is_fetched) in enumerate(load):
        run = (fetched if is_fetched else local)(key, num_prompt, n=n)
        stop_at[key] = num_prompt + num_output + 1
        left[key] = n
        scheduler.submit(run)
    loading: list[Run] = []
    for step in range(5000):
        plan = scheduler.plan()
        assert sum(share.end - share.start for share in plan.shares) <= max(budget, 3)
        loading += plan.reserved
        for share in plan.shares:
            run = share.run
            assert share.start == run.computed
            assert len(run.block_ids) * SIZE >= share.end
            assert not any(pool.is_shared(run.block_ids[p // SIZE]) for p in range(share.start, share.end))
            scheduler.commit(share)
            if not share.is_sampling:
                continue
            if not run.is_forked:
                scheduler.fork(run, dict.fromkeys(range(run.num_choices), 7))
            elif len(run.tokens) + 1 >= stop_at[run.key]:
                scheduler.finish(run)
                left[run.key] -= 1
            else:
                run.tokens.append(7)
        if step in cancels:
            key = step % len(load)
            scheduler.cancel(key)
            loading = [run for run in loading if run.key != key]
            left[key] = 0
        elif loading and (step % 2 or not plan.shares):
            run = loading.pop(0)
            scheduler.join(run.key, dict.fromkeys(range(run.num_choices), 7))
        pool.check()
        if not any(left.values()):
            break
    assert not any(left.values())
    assert pool.stats().held == 0
    assert scheduler.stats() == DecodeStats(0, 0, 0, 0)
