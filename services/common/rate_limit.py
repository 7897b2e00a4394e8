"""How often each caller may call: a bucket of tokens for each, filled at a constant rate. Pure.

A bucket that is full says nothing, so full ones need not be kept; beyond `MAX_CALLERS` the one that was used least
recently is forgotten, full or not: whoever can come under that many names is not held by a limit on names.
"""

from collections import OrderedDict

MAX_CALLERS = 4096


class RateLimit:
    """`per_s` calls a second for each caller in the long run, `burst` of them at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self.per_s = per_s
        self._burst = max(1, burst)
        # What was left of each caller's bucket, and when.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Callers that are remembered."""
        return len(self._buckets)

    def take(self, caller: str, now: float) -> float:
        """Takes one call at `now` (monotonic seconds); 0 where it may go on, else the seconds until one may."""
        left, since = self._buckets.pop(caller, (float(self._burst), now))
        left = min(float(self._burst), left + max(0.0, now - since) * self.per_s)
        # What rounding took away is not worth another wait.
        may_go_on = left >= 1.0 - 1e-9
        self._buckets[caller] = (left - 1.0 if may_go_on else left, max(now, since))
        while len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if may_go_on else (1.0 - left) / self.per_s
