"""The verdict on a steady load under random faults: a run in which requests fail is found, excused ones are not."""

import pytest

from tests.fault.evidence import Part, Record
from tests.fault.soak_verdict import AFTERMATH_S, FRONTEND_KILLED, KV_HURT, Strike, Verdict

WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")


def record(status: str = "OK", error: str = "", part: Part = Part.COMPANION) -> Record:
    """A request of frontend-1 that ran from second 10 to 12 and had until 40."""
    return Record(
        request_id="r", part=part, frontend="frontend-1", started=10.0, deadline=40.0, expected={}, ended=12.0,
        status=status, error=error,
    )  # fmt: skip


def strike(what: str, *victims: str, began: float = 9.0, ended: float = 11.0) -> Strike:
    return Strike(what, began, ended, set(victims))


def judged(*records: Record, strikes: tuple[Strike, ...] = ()) -> Verdict:
    verdict = Verdict()
    for each in records:
        verdict.judge(each, strikes, WORKERS)
    return verdict


def found(verdict: Verdict) -> list[str]:
    return [*verdict.complaints, *verdict.on_the_whole()]


def test_a_run_that_serves_everything_is_well():
    """Nothing is found where every request ended well."""
    assert not found(judged(*[record()] * 100))


@pytest.mark.parametrize("error", ["NoWorker", "PeerUnreachable", "Internal"])
def test_a_run_in_which_everything_fails_is_found(error: str):
    """By each of its requests, and by their share."""
    verdict = judged(*[record("UNAVAILABLE", error)] * 100)
    assert len(verdict.complaints) == 100
    assert verdict.on_the_whole() == ["0 of 100 requests ended well, 0.00 %, less than 99 %"]


def test_a_run_without_requests_is_found():
    """Nothing that was asked is nothing that was shown."""
    assert judged().on_the_whole() == ["no request was judged"]


def test_excused_failures_are_found_where_they_are_many():
    """A fault that may cost a request does not excuse two in a hundred."""
    failed = [record("DATA_LOSS", "HandoffCorrupt")] * 2
    verdict = judged(*[record()] * 98, *failed, strikes=(strike(KV_HURT),))
    assert not verdict.complaints
    assert verdict.on_the_whole()


def test_one_failure_that_nothing_excuses_is_found():
    """One in a hundred is complained of, although the share holds."""
    verdict = judged(*[record()] * 99, record("UNAVAILABLE", "PeerUnreachable"))
    assert len(found(verdict)) == 1


@pytest.mark.parametrize(
    ("failed", "strikes"),
    [
        (record("UNAVAILABLE", "PeerUnreachable"), [strike(FRONTEND_KILLED, "frontend-1")]),
        (record("UNAVAILABLE", "NoWorker"), [strike("a", "decode-0"), strike("b", "decode-1")]),
        (record("RESOURCE_EXHAUSTED", "QueueFull"), [strike("burst")]),
        (record("UNAVAILABLE", "PeerError"), [strike(KV_HURT, ended=10.0 - AFTERMATH_S)]),
        (record("CANCELLED", part=Part.SUBJECT), []),
        (record("DEADLINE_EXCEEDED", part=Part.BLOCKER), []),
    ],
)
def test_what_a_fault_or_a_client_does_is_no_failure(failed: Record, strikes: list[Strike]):
    """Killed frontends, tiers of which all are hurt, load, hurt KV, and clients that cancel or leave no time."""
    assert not judged(failed, strikes=tuple(strikes)).complaints


@pytest.mark.parametrize(
    ("failed", "strikes"),
    [
        (record("DEADLINE_EXCEEDED"), [strike("a", *WORKERS), strike(FRONTEND_KILLED, "frontend-1")]),
        (record("", ""), [strike(KV_HURT)]),
        (record("UNAVAILABLE", "PeerUnreachable"), [strike(FRONTEND_KILLED, "frontend-0")]),
        (record("UNAVAILABLE", "PeerUnreachable"), [strike(FRONTEND_KILLED, "frontend-1", ended=4.0)]),
        (record("UNAVAILABLE", "PeerUnreachable"), [strike("SIGKILL of a decode worker", "decode-1")]),
        (record("UNAVAILABLE", "NoWorker"), [strike("a", "prefill-0", "decode-1")]),
        (record("UNAVAILABLE", "PeerError"), [strike(KV_HURT, began=12.5, ended=20.0)]),
        (record("RESOURCE_EXHAUSTED", "QueueFull"), []),
    ],
)  # fmt: skip
def test_what_no_fault_excuses_is_found(failed: Record, strikes: list[Strike]):
    """Time is never short, other frontends' ends, one worker of a tier, and faults before or after excuse nothing."""
    assert judged(failed, strikes=tuple(strikes)).complaints
