"""What came of minutes of random faults."""

import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.fault.evidence import OK, Record, Snapshot
from tests.fault.footprints import LEAST_FOOTPRINTS
from tests.fault.soak_verdict import Strike, Verdict

# What a fault may still be to blame for, from its beginning.
BLAME_S = 20.0
SHOWN_FAILURES = 12
SHOWN_COMPLAINTS = 50


@dataclass(slots=True)
class Report:
    """What came of it; `complaints` is empty where all went well."""

    complaints: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    recovered_s: dict[str, list[float]] = field(default_factory=dict)
    moves: int = 0
    footprints: list[Snapshot] = field(default_factory=list)
    history: list[Strike] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    unjudged_times: int = 0

    def began(self, what: str) -> Strike:
        """Writes down that a fault begins now; whoever does it says whom it strikes and when it is over."""
        self.history.append(Strike(what, time.monotonic()))
        return self.history[-1]

    def failed(self, record: Record) -> None:
        """Writes down a request that did not end well, although its client gave it time and did not cancel it."""
        self.failures[f"{record.error} ({record.frontend}), met {self.meanwhile(record)}: {record.message}"] += 1

    def meanwhile(self, record: Record) -> str:
        """The faults that a request may have met."""
        first, last = record.started - BLAME_S, record.ended or record.deadline
        return ", ".join(str(strike) for strike in self.history if first <= strike.began <= last) or "no fault"

    @property
    def refetches(self) -> int:
        """Times that a fetch began anew, on the workers that run at the end."""
        last = self.footprints[-1] if self.footprints else {}
        return sum(state.counts.get("sink_refetches_total", 0) for state in last.values())

    def text(self) -> str:
        """As people read it."""
        total = sum(self.ends.values())
        ends = ", ".join(f"{count} {status}" for status, count in self.ends.most_common())
        done = f"{self.moves} moves; {self.refetches} fetches repeated"
        lines = [f"{total} requests: {ends}; {done}; {100 * self.ends[OK] / max(1, total):.2f} % OK"]
        for name, count in sorted(self.faults.items()):
            seconds = self.recovered_s.get(name, [math.inf])
            worst, usual = max(seconds), statistics.median(seconds)
            lines.append(
                f"  {count:3} x {name}: a new request succeeded after {usual:.2f} s (median), {worst:.2f} s (most)"
            )
        if self.unjudged_times:
            lines.append(f"  {self.unjudged_times} of these times not judged: the machine was too busy")
        lines += [f"  {count:3} x {what}" for what, count in self.failures.most_common(SHOWN_FAILURES)]
        for name in sorted(self.footprints[0] if self.footprints else ()):
            lines += [f"  {name}: {line}" for line in self._growth(name)]
        if len(self.footprints) < LEAST_FOOTPRINTS:
            lines.append(f"footprints not judged: {len(self.footprints)} were taken, {LEAST_FOOTPRINTS} are needed")
        lines += [f"WRONG {what}" for what in self.complaints[:SHOWN_COMPLAINTS]]
        if (more := len(self.complaints) - SHOWN_COMPLAINTS) > 0:
            lines.append(f"WRONG in {more} more ways")
        return "\n".join(lines)

    def _growth(self, name: str) -> list[str]:
        states = [each[name] for each in self.footprints if name in each]
        if states[0].incarnation != states[-1].incarnation or not states[0].threads:
            return []
        shown = (f"{state.memory_bytes >> 20} MiB {state.descriptors} fds {state.threads} threads" for state in states)
        return [" -> ".join([next(shown), *list(shown)[-1:]])]
