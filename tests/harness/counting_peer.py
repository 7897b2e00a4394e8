"""A peer of the benchmarks that computes nothing: every step gives each running request a token, the last two at once.

Run as `python -m tests.harness.counting_peer OPTIONS`; `long` is the number of a request that gets a token too many.
"""

import sys
from typing import Any

from benchmarks.peers.driver import OnTokens, serve


class CountingPeer:
    """Satisfies `PeerEngine`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.facts = {"version": "1"}
        self._long = options.get("long")
        self._running: dict[int, int] = {}

    def add(self, request: int, prompt: list[int], output_tokens: int) -> None:
        """See `PeerEngine`."""
        self._running[request] = output_tokens + (request == self._long)

    def step(self, on_tokens: OnTokens) -> None:
        """See `PeerEngine`."""
        for request, left in list(self._running.items()):
            count = 2 if left == 2 else 1
            on_tokens(request, count)
            self._running[request] = left - count
            if self._running[request] <= 0:
                del self._running[request]


if __name__ == "__main__":
    sys.stdout.write("printed by an import\n")
    sys.stdout.flush()
    serve(CountingPeer)
