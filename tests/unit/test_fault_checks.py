"""The checks of the fault harness find what they are there to find."""

from collections.abc import Callable

import pytest

from tests.fault.checks import REQUESTS, complaints
from tests.fault.evidence import Evidence, Part, ProcessState, Record
from tests.fault.scenario import Expectation

STATE = ProcessState(incarnation="a", counts={"blocks_held": 0}, metrics={"moves": 1.0}, descriptors=20, threads=10)


def record(name: str, part: Part, **fields: object) -> Record:
    """A request that went well on two workers."""
    values = {
        "request_id": name, "part": part, "frontend": "frontend-0", "started": 0.0, "deadline": 10.0, "ended": 3.2,
        "status": "OK", "expected": {0: [1, 2, 3]}, "tokens": {0: [1, 2, 3]}, "workers": ("prefill-1", "decode-1"),
        "arrivals": [1.0, 1.1, 1.2, 3.0, 3.1], **fields,
    }  # fmt: skip
    return Record(**values)  # type: ignore[arg-type]


def clean() -> Evidence:
    """A run in which nothing is wrong: one prefill worker was killed, the subject moved."""
    return Evidence(
        records=[record("s", Part.SUBJECT, moves=1), record("c", Part.COMPANION, arrivals=[1.0, 1.1, 1.2, 1.3])],
        victims={"prefill-0"},
        before={"decode-1": STATE},
        after={"decode-1": STATE},
        ended=[("prefill-0", -9)],
        unready={"prefill-0"},
        faulted_at=1.15,
        recovered_at=2.0,
        rested_after_s=0.1,
        is_timing_exact=True,
    )


def late(evidence: Evidence) -> None:
    evidence.records[0].ended = 11.5


def hanging(evidence: Evidence) -> None:
    evidence.records[0].ended = None


def wrong(evidence: Evidence) -> None:
    evidence.records[0].tokens[0][2] = 9


def short(evidence: Evidence) -> None:
    evidence.records[0].tokens[0].pop()


def untyped(evidence: Evidence) -> None:
    evidence.records[0].status = "INTERNAL"


def holding(evidence: Evidence) -> None:
    evidence.after = {"decode-1": ProcessState(incarnation="a", counts={"blocks_held": 2}, metrics=STATE.metrics)}


def owing(evidence: Evidence) -> None:
    kept = {"baton_frontend_resources{name=kept_answers}": 1.0}
    evidence.after = {"frontend-0": ProcessState(incarnation="a", metrics=kept)}


def growing(evidence: Evidence) -> None:
    evidence.after = {"decode-1": ProcessState(incarnation="a", descriptors=40)}


def restless(evidence: Evidence) -> None:
    evidence.rested_after_s = None


def innocent(evidence: Evidence) -> None:
    evidence.records[1].status = "UNAVAILABLE"


def slower(evidence: Evidence) -> None:
    evidence.records[1].arrivals = [1.0, 1.1, 2.0]


def never_back(evidence: Evidence) -> None:
    evidence.recovered_at = None


def slowly_back(evidence: Evidence) -> None:
    evidence.recovered_at = 7.0


def stuck(evidence: Evidence) -> None:
    evidence.records[0].arrivals = [1.0, 1.2, 4.8]


def unmoved(evidence: Evidence) -> None:
    evidence.after = {"decode-1": ProcessState(incarnation="a", metrics={"moves": 0.0})}


def miscounted(evidence: Evidence) -> None:
    before = ProcessState(incarnation="f", metrics={REQUESTS: 5.0})
    evidence.before = {**evidence.before, "frontend-0": before}
    evidence.after = {**evidence.after, "frontend-0": ProcessState(incarnation="f", metrics={REQUESTS: 9.0})}


def others_unready(evidence: Evidence) -> None:
    evidence.unready.add("decode-1")


def crashed(evidence: Evidence) -> None:
    evidence.ended.append(("decode-1", 1))


def badly_ended(evidence: Evidence) -> None:
    evidence.ended = [("prefill-0", 1)]


def restarted_often(evidence: Evidence) -> None:
    evidence.records[0].moves = 3


FINDINGS = {
    late: "c1", hanging: "c1", wrong: "c2", short: "c2", untyped: "c2", holding: "c3", owing: "c3", growing: "c3",
    restless: "c3", innocent: "c4", slower: "c4", never_back: "c5", slowly_back: "c5", stuck: "c5", unmoved: "c6",
    miscounted: "c6", others_unready: "c6", crashed: "c7", badly_ended: "c7", restarted_often: "as_expected",
}  # fmt: skip
EXPECT = Expectation(moves=(1, 1), metrics={"moves": (0, 0)})


def test_nothing_wrong_gives_no_complaint():
    """A clean run passes every check."""
    assert complaints(clean(), EXPECT) == []


@pytest.mark.parametrize("harm", FINDINGS, ids=lambda harm: harm.__name__)
def test_each_fault_is_found_by_its_check(harm: Callable[[Evidence], None]):
    """Each single harm to the evidence is found by the check that is there for it."""
    evidence = clean()
    harm(evidence)
    assert any(found.startswith(FINDINGS[harm]) for found in complaints(evidence, EXPECT))
