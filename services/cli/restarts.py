"""Decides whether and when a process that died is started again. Pure: the caller tells how long it lived."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Bounds of restarting.

    A death is quick where the process was not ready for `quick_s` seconds. After `max_quick_deaths` of them in a row,
    or `max_first_deaths` if it was never ready at all, the process is given up; before that each one doubles the wait,
    from `first_wait_s` up to `max_wait_s`.
    """

    quick_s: float = 10.0
    max_quick_deaths: int = 4
    max_first_deaths: int = 2
    first_wait_s: float = 0.5
    max_wait_s: float = 10.0


class Restarts:
    """Counts the deaths of one process."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._quick_deaths = 0
        self._was_ready = False
        self.deaths = 0

    def next_wait_s(self, ready_s: float) -> float | None:
        """Seconds to wait before the next start after a death, or None where the process is given up.

        Args:
            ready_s: how long the process was ready; 0 where it never was.
        """
        policy = self._policy
        self.deaths += 1
        self._was_ready = self._was_ready or ready_s > 0
        self._quick_deaths = self._quick_deaths + 1 if ready_s < policy.quick_s else 0
        if self._quick_deaths >= (policy.max_quick_deaths if self._was_ready else policy.max_first_deaths):
            return None
        return min(policy.max_wait_s, policy.first_wait_s * 2 ** max(0, self._quick_deaths - 1))
