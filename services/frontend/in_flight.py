"""Counts what this frontend has sent to one worker. Pure.

A load report that comes right after a request was sent may not contain it yet. So a request counts as unreported until
the second report after it: for one interval it may count twice, but it is never forgotten.
"""

from services.frontend.routing.candidate import Sent


class InFlight:
    """Requests sent to one worker and not finished, with their prompt tokens."""

    def __init__(self) -> None:
        self._unfinished = Sent()
        self._since_report = Sent()
        self._before_report = Sent()

    @property
    def unfinished(self) -> Sent:
        """All that was sent and has not finished."""
        return self._unfinished

    @property
    def unreported(self) -> Sent:
        """What was sent so lately that the last report may lack it; what has finished since is left out."""
        lately, unfinished = _sum(self._since_report, self._before_report), self._unfinished
        cached = min(lately.cached, unfinished.cached)
        return Sent(min(lately.requests, unfinished.requests), min(lately.tokens, unfinished.tokens), cached)

    def begin(self, tokens: int, cached: int = 0) -> None:
        """A request was sent; so many of its prompt tokens should be cached there."""
        self._unfinished = _sum(self._unfinished, Sent(1, tokens, cached))
        self._since_report = _sum(self._since_report, Sent(1, tokens, cached))

    def end(self, tokens: int, cached: int = 0) -> None:
        """A request is finished, whichever way; with what it began with."""
        self._unfinished = _sum(self._unfinished, Sent(-1, -tokens, -cached))

    def reported(self) -> None:
        """A load report came."""
        self._before_report = self._since_report
        self._since_report = Sent()


def _sum(one: Sent, other: Sent) -> Sent:
    return Sent(one.requests + other.requests, one.tokens + other.tokens, one.cached + other.cached)
