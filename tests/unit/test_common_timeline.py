"""Stages between marks."""

from services.common.timeline import Mark, Timeline, merge_stages
from services.common.types import StageTimes


class Clock:
    """Monotonic nanoseconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def timeline(**marks: int) -> Timeline:
    clock = Clock()
    found = Timeline(clock)
    for name, at in marks.items():
        clock.now = at
        found.mark(Mark(name))
    return found


def test_each_stage_lies_between_its_marks():
    """As `types.proto` defines them."""
    marks = timeline(
        received=1, queued=10, scheduled=30, first_token=70, first_sent=75, kv_ready=150, first_step=310,
        last_token=630, finished=640,
    )  # fmt: skip
    assert marks.stage_times() == StageTimes(
        queue_ns=20, prefill_ns=40, handoff_ns=80, admission_ns=160, decode_ns=320, ttft_ns=74, total_ns=639
    )


def test_a_stage_that_did_not_end_is_zero():
    """Nothing is invented for a request that failed on its way."""
    assert timeline(queued=10, scheduled=30).stage_times() == StageTimes(queue_ns=20)


def test_the_first_mark_counts_except_for_ends():
    """A preempted request is scheduled twice, and emits many tokens."""
    clock = Clock()
    marks = Timeline(clock)
    for at, mark in ((5, Mark.QUEUED), (7, Mark.SCHEDULED), (9, Mark.SCHEDULED), (10, Mark.FIRST_STEP)):
        clock.now = at
        marks.mark(mark)
    for at in (20, 30):
        clock.now = at
        marks.mark(Mark.LAST_TOKEN)
    assert marks.stage_times() == StageTimes(queue_ns=2, decode_ns=20)
    assert marks.has(Mark.QUEUED)
    assert not marks.has(Mark.FINISHED)


def test_legs_are_merged_stage_by_stage():
    """The first process that measured a stage counts."""
    prefill, decode = StageTimes(queue_ns=1, prefill_ns=2), StageTimes(prefill_ns=9, handoff_ns=3)
    assert merge_stages(prefill, decode) == StageTimes(queue_ns=1, prefill_ns=2, handoff_ns=3)
