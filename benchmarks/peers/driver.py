"""What runs in a peer's process: takes orders of requests on standard input and tells when each token came.

Knows nothing of Baton and imports nothing but the standard library, because it runs in the peer's environment.

An order is a JSON object a line: `requests` as [arrival_s, prompt token ids, output tokens] in order of arrival, and
`concurrency`, the most that run at once, or null. Answers are lines, too: {"ready": facts} once, then for each request
{"request", "sent", "tokens"}, seconds since the order was taken, and at the end {"ended": seconds}.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

# Tells that so many further tokens of a request are there.
OnTokens = Callable[[int, int], None]


class PeerEngine(Protocol):
    """An engine in this process. Answers are greedy, of fixed length, and do not end at the end token."""

    facts: dict[str, Any]

    def add(self, request: int, prompt: list[int], output_tokens: int) -> None:
        """Takes a request; `request` is a number of its own."""
        ...

    def step(self, on_tokens: OnTokens) -> None:
        """Moves on; blocks for a step, or for a moment where nothing is new."""
        ...


class _Order:
    """One order on its way."""

    def __init__(self, order: dict[str, Any], first: int) -> None:
        self._waiting = list(reversed(order["requests"]))
        self._most = order["concurrency"] or len(self._waiting)
        self._first = self._number = first
        self._left: dict[int, int] = {}
        self._sent: dict[int, float] = {}
        self._tokens: dict[int, list[float]] = {}
        self._began = time.perf_counter()

    def run(self, engine: PeerEngine, say: Callable[[dict[str, Any]], None]) -> None:
        """Sends everything, and says what came of each request once it is complete."""
        while self._waiting or self._left:
            self._send(engine)
            if not self._left:
                time.sleep(max(0.0, self._waiting[-1][0] - self._now()))
                continue
            engine.step(self._note)
            for request in [request for request, left in self._left.items() if left <= 0]:
                del self._left[request]
                tokens = self._tokens.pop(request)
                say({"request": request - self._first, "sent": self._sent.pop(request), "tokens": tokens})
        say({"ended": self._now()})

    def _send(self, engine: PeerEngine) -> None:
        while self._waiting and len(self._left) < self._most and self._waiting[-1][0] <= self._now():
            _, prompt, output_tokens = self._waiting.pop()
            self._left[self._number] = output_tokens
            self._tokens[self._number] = []
            self._sent[self._number] = self._now()
            engine.add(self._number, prompt, output_tokens)
            self._number += 1

    def _note(self, request: int, count: int) -> None:
        self._tokens[request] += [self._now()] * count
        self._left[request] -= count

    def _now(self) -> float:
        return time.perf_counter() - self._began


def serve(load: Callable[[dict[str, Any]], PeerEngine]) -> None:
    """Loads the engine with the options of the command line, a JSON object, and serves orders until the input ends."""
    # Standard output is for these lines alone; whatever the peer prints goes to standard error.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)

        def say(line: dict[str, Any]) -> None:
            output.write(json.dumps(line) + "\n")
            output.flush()

        began = time.perf_counter()
        engine = load(json.loads(sys.argv[1]))
        say({"ready": {**engine.facts, "load_s": time.perf_counter() - began}})
        first = 0
        for line in sys.stdin:
            order = json.loads(line)
            _Order(order, first).run(engine, say)
            first += len(order["requests"])
