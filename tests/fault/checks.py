"""C1–C7: what must hold after every fault. Each check reads the evidence and returns what is wrong, in words.

C1 terminal      every request ends with one status by its deadline + 1 s
C2 truth         OK means the tokens of an undisturbed request, else a typed error
C3 no leak       what a process owns comes back to nothing, its descriptors and threads to where they were
C4 blast radius  requests that did not touch the victim end well, and do not slow down
C5 recovery      a new request succeeds within 5 s of the fault
C6 signals       counters moved by the right number; only the victim stopped being ready
C7 no crash      no process ended that was not killed
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

from tests.fault.evidence import OK, Evidence, Part, ProcessState, Record
from tests.fault.scenario import Expectation

GRACE_S = 1.0
RECOVERY_S = 5.0
# gRPC and the interpreter open a few descriptors and threads of their own at their leisure.
SLACK = 6
SLOWDOWN = 2.0
# Gaps between tokens below this are noise of whoever measures them.
GAP_FLOOR_S = 0.1
CROSSING = ("CANCELLED", "DEADLINE_EXCEEDED")
UNTYPED = ("", "UNKNOWN", "INTERNAL")

# What a process owns for requests; nothing of it may be left when none runs. Channels stay, and so do tombstones.
OWNED = (
    "blocks_held", "live_requests", "tickets", "held_prompts", "prompts_ahead", "loading", "handoffs", "engine_inbox",
    "seats_held", "seats_awaited", "watched_requests",
    "source_tickets", "source_ticket_readers", "source_fetches", "source_fetches_waiting",
    "sink_fetches", "sink_background_calls", "sink_releases",
)  # fmt: skip
# Samples of a frontend's metrics; those of `MOVES` have a kind each.
REQUESTS = "baton_frontend_requests_total{outcome=ok}"
MOVES = "baton_frontend_moves_total{"
OWNED_METRICS = (
    "baton_frontend_inflight_requests",
    *(f"baton_frontend_resources{{name={name}}}" for name in (
        "running_requests", "waiting_requests", "tokenizer_calls", "kept_answers", "resumable_requests",
        "ticket_releases_running", "members_retired", "watched_requests",
    )),
)  # fmt: skip

Complaints = Iterator[str]


def c1_terminal(evidence: Evidence, _: Expectation) -> Complaints:
    """Every request has ended, and in time."""
    for record in evidence.records:
        if (late := lateness(record)) is not None:
            yield f"{_name(record)} {late}"


def c2_truth(evidence: Evidence, _: Expectation) -> Complaints:
    """OK means right; what came before an error was right, too; errors are typed."""
    for record in evidence.records:
        yield from (f"{_name(record)} {what}" for what in untruths(record))


def c3_no_leak(evidence: Evidence, _: Expectation) -> Complaints:
    """Nothing of any request is left, within lease + 1 s, and survivors are as large as they were."""
    if evidence.rested_after_s is None:
        yield f"the cluster was not at rest {evidence.rest_limit_s:.1f} s after its last request"
    for name, state in evidence.after.items():
        left = owns(state)
        if left:
            yield f"{name} still holds {left}"
        before = evidence.before.get(name)
        if before is None or before.incarnation != state.incarnation:
            continue
        for what in ("descriptors", "threads"):
            if getattr(state, what) > getattr(before, what) + SLACK:
                yield f"{name} has {getattr(state, what)} {what}, had {getattr(before, what)}"


def c4_blast_radius(evidence: Evidence, expect: Expectation) -> Complaints:
    """Requests that did not touch a victim end well; on virtual time their gaps do not double."""
    for record in unaffected(evidence):
        if record.status not in expect.statuses_of(record.part):
            yield f"{_name(record)} did not touch {sorted(evidence.victims)}, yet ended with {record.status}"
        slowest, usual = worst_gaps(record, evidence.faulted_at)
        if expect.are_gaps_judged and evidence.is_timing_exact and slowest > max(GAP_FLOOR_S, SLOWDOWN * usual):
            yield f"{_name(record)} did not touch the victim, yet its gaps grew from {usual:.3f} to {slowest:.3f} s"


def c5_recovery(evidence: Evidence, expect: Expectation) -> Complaints:
    """A request that began after the fault has succeeded in time, and those that it touched went on or ended."""
    if not expect.recovers:
        return
    if evidence.recovered_at is None:
        yield "no new request succeeded after the fault"
    elif evidence.is_timing_judged and evidence.recovered_at - evidence.faulted_at > RECOVERY_S:
        yield f"new requests succeeded only {evidence.recovered_at - evidence.faulted_at:.2f} s after the fault"
    if evidence.is_timing_judged and (slowest := moved_after_s(evidence)) > expect.moved_within_s:
        yield f"the last request that the fault touched went on only {slowest:.2f} s after it"


def c6_signals(evidence: Evidence, expect: Expectation) -> Complaints:
    """Counters moved as they should, and nobody else became unready."""
    for metric, (least, most) in expect.metrics.items():
        if not least <= evidence.moved(metric) <= most:
            yield f"{metric} moved by {evidence.moved(metric):g}, expected {least:g} to {most:g}"
    for name, after in evidence.after.items():
        before = evidence.before.get(name)
        if before is not None and before.incarnation == after.incarnation and REQUESTS in after.metrics:
            yield from _counts(name, before, after, [each for each in evidence.records if each.frontend == name])
    others = evidence.unready - evidence.victims - expect.unready
    if others:
        yield f"{sorted(others)} stopped being ready"


def _counts(name: str, before: ProcessState, after: ProcessState, records: list[Record]) -> Complaints:
    """A frontend has counted exactly what its clients saw: requests that ended well, and moves.

    A cancellation, or the end of a deadline, may cross with the last message of a request that ended well.
    """
    served, seen = _grown(before, after, REQUESTS), sum(record.status == OK for record in records)
    crossed = sum(record.status in CROSSING for record in records)
    if not seen <= served <= seen + crossed:
        yield f"{name} counted {served:g} requests that ended well, its clients {seen} to {seen + crossed}"
    moved, told = _grown(before, after, MOVES), sum(record.moves for record in records)
    # Only an answer that ended well tells how often it moved.
    if moved < told or (moved != told and all(record.status == OK for record in records)):
        yield f"{name} counted {moved:g} moves, its clients {told}"


def _grown(before: ProcessState, after: ProcessState, prefix: str) -> float:
    return sum(
        value - before.metrics.get(name, 0.0) for name, value in after.metrics.items() if name.startswith(prefix)
    )


def c7_no_crash(evidence: Evidence, expect: Expectation) -> Complaints:
    """Nobody ended but the victims, and those as they should."""
    for name, code in evidence.ended:
        if name not in evidence.victims:
            yield f"{name} ended with {code}, although nothing was done to it"
        elif code not in expect.exits:
            yield f"{name} ended with {code}, expected one of {expect.exits}"


def as_expected(evidence: Evidence, expect: Expectation) -> Complaints:
    """What the row asks for beyond C1–C7: how each part's requests end, and how often they moved."""
    for record in evidence.records:
        allowed = expect.statuses_of(record.part)
        if record.frontend in evidence.victims:
            allowed = (*allowed, *expect.lost_with_frontend)
        if record.status not in allowed:
            yield f"{_name(record)} ended with {record.status}, not {allowed}: {record.error} {record.message}"
    yield from _refusals(evidence, expect)
    for record in evidence.of(Part.SUBJECT):
        if record.status == OK and not expect.moves[0] <= record.moves <= expect.moves[1]:
            yield f"{_name(record)} moved {record.moves} times, expected {expect.moves}"


def _refusals(evidence: Evidence, expect: Expectation) -> Complaints:
    """Where new requests are refused, that is soon, and they are told when to come back."""
    for record in evidence.of(Part.PROBE):
        if record.status != "UNAVAILABLE":
            continue
        took = (record.ended or 0.0) - record.started
        if took > expect.refused_within_s:
            yield f"{_name(record)} was refused only after {took:.2f} s"
        if expect.is_hinted and not record.retry_after_s:
            yield f"{_name(record)} was refused without a hint when to come back: {record.error} {record.message}"


CHECKS: tuple[Callable[[Evidence, Expectation], Complaints], ...] = (
    c1_terminal, c2_truth, c3_no_leak, c4_blast_radius, c5_recovery, c6_signals, c7_no_crash, as_expected,
)  # fmt: skip


def complaints(evidence: Evidence, expect: Expectation) -> list[str]:
    """Everything that is wrong, each with the check that says so."""
    return [f"{check.__name__}: {what}" for check in CHECKS for what in check(evidence, expect)]


def owns(state: ProcessState) -> dict[str, int]:
    """What of requests a process still holds."""
    counts = {name: state.counts[name] for name in OWNED if state.counts.get(name)}
    return counts | {name: int(state.metrics[name]) for name in OWNED_METRICS if state.metrics.get(name)}


def unsettled(states: Mapping[str, ProcessState]) -> list[str]:
    """Workers that lack a channel to one of the other tier, or still end one: they will be larger, or smaller."""
    workers = [[name for name in states if name.startswith(tier)] for tier in ("prefill", "decode")]
    return [
        name
        for own, others in (workers, reversed(workers))
        for name in own
        if states[name].counts["channels"] != len(others) or states[name].counts.get("source_channels_ending")
    ]


def lateness(record: Record) -> str | None:
    """How a request failed to end in time; None where it did not."""
    if record.ended is None:
        return "never ended"
    if record.ended > record.deadline + GRACE_S:
        return f"ended {record.ended - record.deadline:.2f} s after its deadline ({record.status})"
    return None


def untruths(record: Record) -> Complaints:
    """What was wrong in an answer."""
    if record.gap:
        yield record.gap
    for choice, tokens in record.tokens.items():
        if tokens != record.expected[choice][: len(tokens)]:
            yield f"got wrong tokens ({record.status}): {tokens} for {record.expected[choice]}"
    if record.status == OK and record.tokens != dict(record.expected):
        yield f"is OK with {record.tokens}, not {dict(record.expected)}"
    if record.status in UNTYPED and record.ended is not None:
        yield f"ended with {record.status or 'nothing'}: {record.error} {record.message}"


def wrong_with(record: Record) -> list[str]:
    """Everything that is wrong with one request by C1 and C2."""
    late = lateness(record)
    return [*([late] if late else []), *untruths(record)]


def unaffected(evidence: Evidence) -> list[Record]:
    """Requests that ran beside the fault and never touched a victim."""
    return [
        record
        for record in evidence.of(Part.COMPANION)
        if not (evidence.victims | evidence.touched) & {*record.workers, record.frontend} and record.moves == 0
    ]


def moved_after_s(evidence: Evidence) -> float:
    """Seconds from the fault until the last subject that it touched had gone on or ended; 0 where none was touched."""
    touched = [record for record in evidence.of(Part.SUBJECT) if record.moves or record.status != OK]
    return max((_went_on(record, evidence.faulted_at) - evidence.faulted_at for record in touched), default=0.0)


def _went_on(record: Record, moment: float) -> float:
    """When the longest silence after `moment` was over: what was on its way before the fault still arrives after it."""
    moments = [moment, *(arrival for arrival in record.arrivals if arrival > moment), record.ended or moment]
    return max(itertools.pairwise(moments), key=lambda pair: pair[1] - pair[0])[1]


def worst_gaps(record: Record, moment: float) -> tuple[float, float]:
    """The worst gap between two arrivals after `moment` and the usual (median) one before it, in seconds; 0 if none."""
    pairs = list(zip(record.arrivals, record.arrivals[1:], strict=False))
    after = [later - earlier for earlier, later in pairs if later > moment]
    before = sorted(later - earlier for earlier, later in pairs if later <= moment)
    if not after or not before:
        return 0.0, 0.0
    return max(after), before[len(before) // 2]


def _name(record: Record) -> str:
    return f"{record.part.value} {record.request_id}"
