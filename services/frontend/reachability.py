"""Whether a worker can be reached, decided so that routing does not flap. Pure.

    connecting ──report──▶ reachable ◀──report── suspect ──failures in a row reach the threshold──▶ unreachable
                               └──failure──▶        ▲                                                   │
                               ▲                                                                        │
                               └────────────reports in a row reach the threshold────────────────────────┘

A failure is a heartbeat that did not come, or a watch that broke. A suspect worker is used only where no other can
serve; an unreachable one is not used. A process that is known to be gone is unreachable at once.
"""

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """What to think of a worker."""

    CONNECTING = "connecting"
    REACHABLE = "reachable"
    SUSPECT = "suspect"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When to change one's mind.

    Attributes:
        heartbeat_s: Time within which a worker that lives reports its load.
        failures: Failures in a row after which a worker is unreachable.
        recoveries: Reports in a row after which an unreachable worker is reachable again.
        pair_grace_s: Time for which a pair whose channel is not proven yet may still be used where no pair is proven.
    """

    heartbeat_s: float = 0.5
    failures: int = 3
    recoveries: int = 2
    pair_grace_s: float = 3.0


class Reachability:
    """The state of one incarnation of one worker."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.state = State.CONNECTING
        self._thresholds = thresholds
        self._in_a_row = 0

    @property
    def is_routable(self) -> bool:
        """True where requests may be sent there."""
        return self.state in (State.REACHABLE, State.SUSPECT)

    def report(self) -> None:
        """A load report came."""
        if self.state is State.UNREACHABLE:
            self._in_a_row += 1
            if self._in_a_row < self._thresholds.recoveries:
                return
        self._enter(State.REACHABLE)

    def fail(self, *, is_gone: bool = False) -> None:
        """A heartbeat did not come or the watch broke; `is_gone` where another process answers in its place."""
        if self.state is State.UNREACHABLE:
            self._in_a_row = 0
            return
        if self.state is State.REACHABLE:
            self._enter(State.SUSPECT)
        self._in_a_row += 1
        if is_gone or self._in_a_row >= self._thresholds.failures:
            self._enter(State.UNREACHABLE)

    def _enter(self, state: State) -> None:
        self.state, self._in_a_row = state, 0
