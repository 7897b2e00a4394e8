"""When a worker counts as reachable: few failures and few reports change nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.frontend.reachability import Reachability, State, Thresholds

SIGNALS = st.lists(st.sampled_from(("report", "fail", "gone")), max_size=60)


def fed(reachability: Reachability, *signals: str) -> State:
    """The state after these signals."""
    for signal in signals:
        if signal == "report":
            reachability.report()
        else:
            reachability.fail(is_gone=signal == "gone")
    return reachability.state


def test_a_worker_is_used_from_its_first_report():
    """Joining needs no second look."""
    reachability = Reachability(Thresholds())
    assert not reachability.is_routable
    assert fed(reachability, "report") is State.REACHABLE


def test_one_failure_makes_a_worker_suspect_and_one_report_clears_it():
    """A single lost heartbeat takes nobody out of routing."""
    reachability = Reachability(Thresholds())
    assert fed(reachability, "report", "fail") is State.SUSPECT
    assert reachability.is_routable
    assert fed(reachability, "report") is State.REACHABLE


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_so_many_failures_in_a_row_make_it_unreachable(failures: int):
    """Not one fewer."""
    reachability = Reachability(Thresholds(failures=failures))
    fed(reachability, "report", *["fail"] * (failures - 1))
    assert reachability.is_routable
    assert fed(reachability, "fail") is State.UNREACHABLE


def test_a_process_that_is_gone_is_unreachable_at_once():
    """Nobody waits for heartbeats of a process that another one has replaced."""
    assert fed(Reachability(Thresholds()), "report", "gone") is State.UNREACHABLE


@pytest.mark.parametrize("recoveries", [1, 2, 4])
def test_so_many_reports_in_a_row_make_it_reachable_again(recoveries: int):
    """A failure in between starts the count anew."""
    reachability = Reachability(Thresholds(recoveries=recoveries))
    fed(reachability, "report", "gone", *["report"] * (recoveries - 1), "fail", *["report"] * (recoveries - 1))
    assert reachability.state is State.UNREACHABLE
    assert fed(reachability, "report") is State.REACHABLE


@given(SIGNALS, st.integers(1, 5), st.integers(1, 5))
def test_routing_changes_no_faster_than_the_thresholds_allow(signals: list[str], failures: int, recoveries: int):
    """Out only after enough failures in a row, or when a process is gone; back only after enough reports in a row."""
    reachability = Reachability(Thresholds(failures=failures, recoveries=recoveries))
    row: list[str] = []
    has_joined = False
    for signal in signals:
        before = reachability.is_routable
        after = fed(reachability, signal) in (State.REACHABLE, State.SUSPECT)
        row = [*row, signal] if row and (row[-1] == "report") == (signal == "report") else [signal]
        if before and not after:
            assert signal == "gone" or len(row) >= failures
        if after and not before:
            assert signal == "report"
            assert len(row) >= recoveries or not has_joined
        has_joined = has_joined or reachability.state is not State.CONNECTING


@given(SIGNALS)
def test_enough_of_the_same_always_decides(signals: list[str]):
    """Whatever came before: three failures end routing, two reports begin it."""
    reachability = Reachability(Thresholds())
    assert fed(reachability, *signals, *["fail"] * 3) is State.UNREACHABLE
    assert fed(reachability, "report", "report") is State.REACHABLE
