"""Which requests of a steady load may fail under random faults, and how many. Pure: plain data in, words out."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from tests.fault.evidence import OK, Part, Record

LEAST_SHARE = 0.99
# What a fault may still be to blame for once it is over: workers are ejected, connections wait before they try again.
AFTERMATH_S = 5.0
FRONTEND_KILLED = "SIGKILL of a frontend"
KV_HURT = "messages of KV hurt"


@dataclass(slots=True)
class Strike:
    """One fault, the processes it was done to, and its monotonic seconds; `ended` is infinite while it goes on."""

    what: str
    began: float
    ended: float = math.inf
    victims: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.what} ({', '.join(sorted(self.victims))})" if self.victims else self.what


@dataclass(slots=True)
class Verdict:
    """`asked` requests were left time by their clients, and no fault took their frontend; `served` ended well."""

    asked: int = 0
    served: int = 0
    complaints: list[str] = field(default_factory=list)

    def judge(self, record: Record, strikes: Sequence[Strike], workers: Collection[str]) -> None:
        """Counts a request that has ended; complains where it failed and no fault excuses that.

        `workers` are the names of all workers. Requests that their clients cancelled or gave too little time fail as
        they should.
        """
        if record.part is not Part.COMPANION:
            return
        met = [each for each in strikes if _met(record, each)]
        if _is_lost(record, met):
            return
        self.asked += 1
        self.served += record.status == OK
        if record.status != OK and not _is_excused(record, met, workers):
            meanwhile = ", ".join(map(str, met)) or "no fault"
            failure = f"{record.status or 'never ended'} {record.error} {record.message}"
            self.complaints.append(f"{record.request_id}: {failure}; met {meanwhile}, which does not excuse it")

    def on_the_whole(self) -> list[str]:
        """What is wrong with all of them together."""
        if not self.asked:
            return ["no request was judged"]
        if self.served < LEAST_SHARE * self.asked:
            share = f"{self.served} of {self.asked} requests ended well, {100 * self.served / self.asked:.2f} %"
            return [f"{share}, less than {100 * LEAST_SHARE:g} %"]
        return []


def _met(record: Record, strike: Strike) -> bool:
    ended = math.inf if record.ended is None else record.ended
    return strike.began <= ended and record.started <= strike.ended + AFTERMATH_S


def _is_lost(record: Record, met: Sequence[Strike]) -> bool:
    """Its frontend was killed, and its connection broke."""
    killed = (each for each in met if each.what == FRONTEND_KILLED)
    return record.status == "UNAVAILABLE" and any(record.frontend in each.victims for each in killed)


def _is_excused(record: Record, met: Sequence[Strike], workers: Collection[str]) -> bool:
    """A fault that it met can do this to a request; time is never short, for clients left enough."""
    if record.error == "NoWorker":
        return _is_a_tier_hurt(met, workers)
    if record.status == "RESOURCE_EXHAUSTED":
        return bool(met)  # less of the cluster was there, or more was asked
    return record.status in ("UNAVAILABLE", "DATA_LOSS") and any(each.what == KV_HURT for each in met)


def _is_a_tier_hurt(met: Sequence[Strike], workers: Collection[str]) -> bool:
    """Every worker of a tier was hurt meanwhile."""
    hurt = {victim for each in met for victim in each.victims}
    tiers = {name.rpartition("-")[0] for name in workers}
    return any({name for name in workers if name.startswith(tier)} <= hurt for tier in tiers)
