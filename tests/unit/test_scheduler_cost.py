"""What planning costs with many requests in line: counted in instructions, for a clock would tell of the machine."""

from collections.abc import Callable

import pytest

from services.decode.plan import Run
from services.decode.scheduler import DecodeScheduler
from services.engine.blocks import BlockPool
from services.prefill.ahead import Ahead
from services.prefill.prompt import Prompt
from services.prefill.scheduler import PrefillScheduler
from tests.harness.instructions import count_instructions

SIZE = 4
FEW, MANY = 50, 400


def prefill(
    *, blocks: int, ahead: Ahead | None = None, seqs: int = 2000, budget: int = 10**6, first: int = 1
) -> PrefillScheduler:
    """A scheduler whose first prompt, of so many blocks, has been planned once."""
    scheduler = PrefillScheduler(
        BlockPool(blocks, SIZE), max_num_seqs=seqs, max_num_batched_tokens=budget, ahead=ahead or Ahead(1, blocks)
    )
    scheduler.submit(prompt(0, first, is_awaited=True))
    for chunk in scheduler.plan():
        scheduler.commit(chunk)
    return scheduler


def prompt(key: int, num_blocks: int, *, is_awaited: bool) -> Prompt:
    return Prompt(key=key, token_ids=[key + 1] * num_blocks * SIZE, rank=float(key), is_awaited=is_awaited)


def enqueue(scheduler: PrefillScheduler, count: int, *, is_awaited: bool = False, num_blocks: int = 2) -> None:
    for key in range(1, count + 1):
        scheduler.submit(prompt(key, num_blocks, is_awaited=is_awaited))


def no_block_left(count: int) -> PrefillScheduler:
    scheduler = prefill(blocks=4, first=4)
    enqueue(scheduler, count)
    return scheduler


def budget_used_up(count: int) -> PrefillScheduler:
    scheduler = prefill(blocks=64, first=16, budget=SIZE)
    enqueue(scheduler, count)
    return scheduler


def no_slot_left(count: int) -> PrefillScheduler:
    scheduler = prefill(blocks=64, first=16, budget=SIZE, seqs=1)
    enqueue(scheduler, count)
    return scheduler


def credit_used_up(count: int) -> PrefillScheduler:
    """As many prompts as wait have run ahead and hold blocks."""
    scheduler = prefill(blocks=4 * count, ahead=Ahead(count, 4 * count))
    enqueue(scheduler, 2 * count, num_blocks=1)
    for chunk in scheduler.plan():
        scheduler.commit(chunk)
    assert (scheduler.stats().ahead, scheduler.stats().waiting) == (count, count)
    return scheduler


def first_awaited_too_large(count: int) -> PrefillScheduler:
    scheduler = prefill(blocks=4, first=3)
    enqueue(scheduler, count, is_awaited=True)
    return scheduler


def too_large_for_the_credit(count: int) -> PrefillScheduler:
    """A prompt beyond what the credit leaves, each of them, beside as many that hold blocks on credit."""
    scheduler = prefill(blocks=8 * count, ahead=Ahead(2 * count, count + 1))
    enqueue(scheduler, count, num_blocks=1)
    for chunk in scheduler.plan():
        scheduler.commit(chunk)
    for key in range(count + 1, 2 * count + 1):
        scheduler.submit(prompt(key, 2, is_awaited=False))
    return scheduler


def too_large_for_the_pool(count: int) -> PrefillScheduler:
    scheduler = prefill(blocks=4, first=3)
    enqueue(scheduler, count)
    return scheduler


@pytest.mark.parametrize("line", [no_block_left, budget_used_up, no_slot_left, credit_used_up, first_awaited_too_large])
def test_a_prefill_plan_ends_where_nobody_else_can_be_admitted(line: Callable[[int], PrefillScheduler]):
    """It looks no further: with eight times as many prompts in line it costs the same."""
    few, many = line(FEW), line(MANY)
    assert len(few.plan()) == len(many.plan()) <= 1
    assert count_instructions(many.plan) == count_instructions(few.plan)


@pytest.mark.parametrize("line", [too_large_for_the_credit, too_large_for_the_pool])
def test_a_prefill_plan_looks_once_at_each_that_might_fit(line: Callable[[int], PrefillScheduler]):
    """A smaller one further back may have room, so all are looked at, each at the same cost whoever else is there."""
    few, many = line(FEW), line(MANY)
    assert few.plan() == many.plan() == []
    assert count_instructions(many.plan) < count_instructions(few.plan) * MANY / FEW * 1.01


@pytest.mark.parametrize(
    "command",
    [
        lambda scheduler: scheduler.stats(),
        lambda scheduler: scheduler.submit(prompt(9999, 1, is_awaited=False)),
        lambda scheduler: scheduler.note_awaited(FEW // 2, is_awaited=True),
        lambda scheduler: scheduler.stop(FEW // 2),
    ],
    ids=["stats", "submit", "note_awaited", "stop"],
)
def test_a_command_costs_prefill_the_same_in_any_line(command: Callable[[PrefillScheduler], object]):
    """Each command is followed by stats: both are found and summed up without a walk along the line."""
    few, many = no_block_left(FEW), no_block_left(MANY)
    assert count_instructions(lambda: command(many)) == count_instructions(lambda: command(few))


def decode(count: int) -> DecodeScheduler:
    """Two slots, both taken, and so many runs in line."""
    scheduler = DecodeScheduler(BlockPool(64, SIZE), max_num_seqs=2, max_num_batched_tokens=64)
    for key in range(2 + count):
        scheduler.submit(Run(key=key, tokens=[key + 1] * SIZE, num_prompt=SIZE, rank=float(key)))
    for share in scheduler.plan().shares:
        scheduler.commit(share)
    return scheduler


@pytest.mark.parametrize("work", [DecodeScheduler.plan, DecodeScheduler.stats])
def test_decode_plans_and_counts_at_the_same_cost_in_any_line(work: Callable[[DecodeScheduler], object]):
    """Nobody behind the first one that has no room is looked at."""
    few, many = decode(FEW), decode(MANY)
    assert count_instructions(lambda: work(many)) == count_instructions(lambda: work(few))
