"""Collects where one request's time goes: what the workers report, and what this frontend sees for itself."""

import time
from collections.abc import Callable

from services.common.flat import flat
from services.common.timeline import Mark, Timeline, merge_stages
from services.common.types import StageTimes

# Only a frontend sees all of a request.
_OWN = ("ttft_ns", "total_ns")
# By how much two clocks may disagree about a request.
_CLOCKS_DIFFER_NS = 1_000_000_000


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
        """Takes what a worker measured of its own stages; what cannot be is left out."""
        longest = self._timeline.since(Mark.RECEIVED) + _CLOCKS_DIFFER_NS
        measured = flat(stages)
        possible = {name: ns for name, ns in measured.items() if name not in _OWN and 0 <= ns <= longest}
        self._reported = merge_stages(self._reported, StageTimes(**possible))

    def stages(self) -> StageTimes:
        """All that is known now."""
        return merge_stages(self._reported, self._timeline.stage_times())
