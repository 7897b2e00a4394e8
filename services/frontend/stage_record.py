"""Collects where one request's time goes: what the workers report, and what this frontend sees for itself."""

import time
from collections.abc import Callable

from services.common.timeline import Mark, Timeline, merge_stages
from services.common.types import StageTimes


class StageRecord:
    """The stage times of one request, from the moment it was received.

    What a worker measured counts; where it has not said (a stop string ended the request, or it failed), the moments at
    which its messages came stand in.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._timeline = Timeline(clock)
        self._reported = StageTimes()
        self._timeline.mark(Mark.RECEIVED)

    def mark(self, mark: Mark) -> None:
        """Notes that the moment is now."""
        self._timeline.mark(mark)

    def report(self, stages: StageTimes) -> None:
        """Takes what a worker measured."""
        self._reported = merge_stages(self._reported, stages)

    def stages(self) -> StageTimes:
        """All that is known now."""
        return merge_stages(self._reported, self._timeline.stage_times())
