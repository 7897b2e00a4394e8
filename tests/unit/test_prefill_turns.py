"""Prefill's bounded line: what it knows is summed up as prompts come and go, whichever way they go."""

import contextlib

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import QueueFull
from services.common.priority import Priority
from services.common.queue_metrics import QueueMetrics
from services.prefill.admission import PrefillLimits
from services.prefill.live import LivePrompt
from services.prefill.turns import Turns
from tests.harness.instructions import count_instructions
from tests.harness.tiers import work


def turns(*, prompts: int, tokens: int) -> Turns:
    limits = PrefillLimits(
        max_num_seqs=1,
        max_num_batched_tokens=64,
        max_queued_requests=prompts - 1,
        max_queued_tokens=tokens,
        prompts_ahead=0,
        queue_ttl_s=60.0,
        priority_aging_s=10.0,
    )
    return Turns(limits, QueueMetrics("prefill", CollectorRegistry()))


def enter(line: Turns, tokens: int, priority: Priority = Priority.NORMAL) -> LivePrompt:
    live = LivePrompt(work(list(range(tokens)), priority=priority))
    with line.entering(live):
        return live


async def test_whoever_leaves_makes_exactly_its_own_room() -> None:
    """Ended, ended twice, displaced, or failed on entering: after each the line takes as many tokens as it is to."""
    line = turns(prompts=4, tokens=100)
    low = enter(line, 60, Priority.LOW)
    ended = enter(line, 40)
    line.ended(ended)
    line.ended(ended)
    with contextlib.suppress(KeyError), line.entering(LivePrompt(work(list(range(40))))):
        raise KeyError
    kept = [enter(line, 40)]
    kept.append(enter(line, 60))
    with pytest.raises(QueueFull):
        await low.done
    line.ended(low)
    with pytest.raises(QueueFull):
        enter(line, 1)
    for live in kept:
        line.ended(live)
    enter(line, 99)
    enter(line, 1)
    with pytest.raises(QueueFull):
        enter(line, 1)


async def test_those_in_turn_keep_their_room() -> None:
    """A newcomer of high priority displaces nobody who has blocks, and is refused where these leave no room."""
    line = turns(prompts=4, tokens=100)
    running, low = enter(line, 50, Priority.LOW), enter(line, 50, Priority.LOW)
    running.turn.set()
    with pytest.raises(QueueFull):
        enter(line, 51, Priority.HIGH)
    enter(line, 50, Priority.HIGH)
    with pytest.raises(QueueFull):
        await low.done
    assert not running.done.done()


async def test_a_newcomer_costs_the_same_in_any_line() -> None:
    """Where there is room, nobody in line is looked at."""
    few, many = turns(prompts=999, tokens=9999), turns(prompts=999, tokens=9999)
    for line, count in ((few, 10), (many, 400)):
        for _ in range(count):
            enter(line, 1)
    live = LivePrompt(work([1]))

    def come_and_go(line: Turns) -> None:
        with line.entering(live):
            pass
        line.ended(live)

    assert count_instructions(lambda: come_and_go(many)) == count_instructions(lambda: come_and_go(few))
