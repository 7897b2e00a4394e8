"""Steps on several ranks of which one raises: all give the step up, and the next ones are right."""

from typing import Any

import pytest
import torch

from services.engine.batch import BatchItem
from services.engine.packing import PackedStep, pack_step
from services.engine.tensor_parallel.group import RankGroup, StepAbandoned
from services.engine.tensor_parallel.link import Kind, Link, RankLost
from services.engine.tensor_parallel.runner import ShardedRunner, follow
from tests.harness.rank_threads import on_all, rank_groups

RANKS, SUMS, STEPS, BAD_STEP = 3, 2, 4, 1


class SummingRunner:
    """Stands where a rank's model would: adds up twice; on one rank, raises at one place of one step.

    The step's only token is its number.
    """

    def __init__(self, group: RankGroup, failing: int, sums_before: int) -> None:
        self.group = group
        self.failing_at = sums_before if group.rank == failing else None

    def forward(self, packed: PackedStep) -> torch.Tensor:
        number = int(packed.input_ids[0, 0])
        total = torch.zeros(2)
        for turn in range(SUMS + 1):
            if number == BAD_STEP and turn == self.failing_at:
                raise ValueError("mine")
            if turn < SUMS:
                total = self.group.all_reduce(torch.full((2,), float(self.group.rank + turn + number)))
        return total


def step(number: int) -> PackedStep:
    return pack_step([BatchItem(token_ids=(number,), start=0, block_ids=(0,))], 4, torch.device("cpu"))


def wanted(number: int) -> float:
    """What the last sum of a step is."""
    return float(sum(rank + SUMS - 1 + number for rank in range(RANKS)))


def lead(group: RankGroup, runner: SummingRunner) -> list[Any]:
    """Rank 0: what each step gave, or what it raised."""
    sharded: Any = ShardedRunner(runner, group)  # type: ignore[arg-type]
    found: list[Any] = []
    for number in range(STEPS):
        try:
            found.append(float(sharded.forward(step(number))[0]))
        except (ValueError, StepAbandoned) as error:
            found.append(error)
    for link in links_of(group):
        link.send(Kind.STOP)
    return found


def links_of(group: RankGroup) -> list[Link]:
    return list(group._links.values())


@pytest.mark.parametrize("failing", range(RANKS))
@pytest.mark.parametrize("sums_before", range(SUMS + 1))
def test_a_step_that_raises_on_one_rank_harms_no_later_one(failing: int, sums_before: int) -> None:
    """Before, between or after the sums. What a rank other than 0 raises at the very end shows in the next step."""

    def work(group: RankGroup) -> Any:
        runner = SummingRunner(group, failing, sums_before)
        return lead(group, runner) if group.rank == 0 else follow(runner, group)  # type: ignore[arg-type]

    found, *others = on_all(rank_groups(RANKS), work)
    assert others == [None] * (RANKS - 1)
    failed = [number for number, value in enumerate(found) if isinstance(value, Exception)]
    is_late = failing and sums_before == SUMS
    assert failed == [BAD_STEP + 1 if is_late else BAD_STEP]
    assert isinstance(found[failed[0]], StepAbandoned if failing else ValueError)
    assert all(value == wanted(number) for number, value in enumerate(found) if number not in failed)


def test_after_a_lost_rank_every_step_raises_at_once() -> None:
    """Not only the one that noticed: nobody waits for the deadline, which is longer than the test."""

    def work(group: RankGroup) -> Any:
        if group.rank == 1:
            group.close()
            return None
        runner: Any = SummingRunner(group, failing=-1, sums_before=0)
        if group.rank == 2:
            return follow(runner, group)
        sharded, lost = ShardedRunner(runner, group), 0
        for number in range(3):
            with pytest.raises(RankLost):
                sharded.forward(step(number))
            lost += 1
        return lost

    first, _, third = on_all(rank_groups(RANKS, timeout_s=3600.0), work)
    assert first == 3
    assert isinstance(third, RankLost)
