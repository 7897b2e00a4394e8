"""Where a request's time goes: marks on the monotonic clock, stages between them."""

import enum
import time
from collections.abc import Callable

from services.common.flat import flat
from services.common.types import StageTimes


class Mark(enum.Enum):
    """Moments in the life of a request."""

    RECEIVED = "received"
    QUEUED = "queued"
    SCHEDULED = "scheduled"
    FIRST_TOKEN = "first_token"
    KV_READY = "kv_ready"
    FIRST_STEP = "first_step"
    LAST_TOKEN = "last_token"
    FIRST_SENT = "first_sent"
    FINISHED = "finished"


_STAGES: dict[str, tuple[Mark, Mark]] = {
    "queue_ns": (Mark.QUEUED, Mark.SCHEDULED),
    "prefill_ns": (Mark.SCHEDULED, Mark.FIRST_TOKEN),
    "handoff_ns": (Mark.FIRST_TOKEN, Mark.KV_READY),
    "admission_ns": (Mark.KV_READY, Mark.FIRST_STEP),
    "decode_ns": (Mark.FIRST_STEP, Mark.LAST_TOKEN),
    "ttft_ns": (Mark.RECEIVED, Mark.FIRST_SENT),
    "total_ns": (Mark.RECEIVED, Mark.FINISHED),
}


class Timeline:
    """Marks of one request in one process; the first mark of a kind counts, except for `LAST_TOKEN` and `FINISHED`.

    Thread: whoever owns the request; marks are plain dictionary writes.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._marks: dict[Mark, int] = {}

    def mark(self, mark: Mark) -> None:
        """Notes that the moment is now."""
        if mark in (Mark.LAST_TOKEN, Mark.FINISHED):
            self._marks[mark] = self._clock()
        else:
            self._marks.setdefault(mark, self._clock())

    def has(self, mark: Mark) -> bool:
        """True once the moment has come."""
        return mark in self._marks

    def since(self, mark: Mark) -> int:
        """Nanoseconds since a moment that has come."""
        return self._clock() - self._marks[mark]

    def stage_times(self) -> StageTimes:
        """The stages whose both ends are marked; all others are 0."""
        times = {
            name: max(0, self._marks[end] - self._marks[begin])
            for name, (begin, end) in _STAGES.items()
            if begin in self._marks and end in self._marks
        }
        return StageTimes(**times)


def merge_stages(first: StageTimes, *others: StageTimes) -> StageTimes:
    """Puts together what several processes measured of one request: per stage the first that is not 0."""
    merged = flat(first)
    for other in others:
        for name, value in flat(other).items():
            merged[name] = merged[name] or value
    return StageTimes(**merged)
