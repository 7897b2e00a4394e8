"""Where a request's time went, from what workers report and what the frontend sees."""

from services.common.timeline import Mark
from services.common.types import StageTimes
from services.frontend.stage_record import StageRecord


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100

    def __call__(self) -> int:
        return self.now

    def mark(self, record: StageRecord, mark: Mark, at: int) -> None:
        """Marks a moment `at` nanoseconds after the request came."""
        self.now = 100 + at
        record.mark(mark)


def test_what_workers_measured_counts() -> None:
    """Reports of both legs are put together; the frontend adds time to first token and total."""
    clock = Clock()
    record = StageRecord(clock)
    record.report(StageTimes(queue_ns=1, prefill_ns=2))
    clock.mark(record, Mark.FIRST_SENT, 40)
    record.report(StageTimes(handoff_ns=3, admission_ns=4, decode_ns=5))
    clock.mark(record, Mark.FINISHED, 90)
    assert record.stages() == StageTimes(1, 2, 3, 4, 5, 40, 90)


def test_own_view_stands_in_for_a_missing_report() -> None:
    """A decode leg that was stopped before its summary: the moments at which its messages came are used."""
    clock = Clock()
    record = StageRecord(clock)
    record.report(StageTimes(queue_ns=1, prefill_ns=2))
    for at, mark in enumerate((Mark.FIRST_TOKEN, Mark.KV_READY, Mark.FIRST_STEP, Mark.LAST_TOKEN, Mark.LAST_TOKEN)):
        clock.mark(record, mark, 10 * at)
    assert record.stages() == StageTimes(1, 2, 10, 10, 20)


def test_failed_request_knows_what_happened_so_far() -> None:
    """Before any report only the total is known, and only once the request is over."""
    clock = Clock()
    record = StageRecord(clock)
    assert record.stages() == StageTimes()
    clock.mark(record, Mark.FINISHED, 7)
    assert record.stages() == StageTimes(total_ns=7)


def test_times_that_cannot_be_are_left_out() -> None:
    """Negative ones, longer ones than the request, and those that a worker cannot know; the own view stands in."""
    clock = Clock()
    record = StageRecord(clock)
    clock.mark(record, Mark.FINISHED, 90)
    record.report(StageTimes(queue_ns=-1, prefill_ns=2**62, decode_ns=5, total_ns=7))
    assert record.stages() == StageTimes(decode_ns=5, total_ns=90)
