"""Moves away from workers that leave do not count as failures."""

import pytest

from services.common.errors import Draining, PeerUnreachable
from services.frontend.recovery import MAX_GRACEFUL_MOVES, Recovery
from services.frontend.retry_budget import RetryBudget


def with_moves(max_moves: int) -> Recovery:
    """A request that may move so often after failures, and a frontend that has two retries to give."""
    return Recovery(max_moves, RetryBudget(0.0, 0.2))


def test_graceful_moves_leave_the_budget_for_failures() -> None:
    """After moves away from leaving workers a request may still survive as many failures as ever."""
    recovery = with_moves(2)
    for _ in range(3):
        recovery.move(Draining("leaves"), (), 0.0)
    for _ in range(2):
        recovery.move(PeerUnreachable("died"), (), 0.0)
    with pytest.raises(PeerUnreachable):
        recovery.move(PeerUnreachable("died"), (), 0.0)
    recovery.move(Draining("leaves"), (), 0.0)
    assert recovery.moves == 6


def test_graceful_moves_are_bounded() -> None:
    """Workers that refuse over and over do not keep a request moving for ever."""
    recovery = with_moves(1)
    for _ in range(MAX_GRACEFUL_MOVES):
        recovery.move(Draining("leaves"), (), 0.0)
    with pytest.raises(Draining):
        recovery.move(Draining("leaves"), (), 0.0)


def test_where_moves_are_forbidden_none_is_made() -> None:
    """With max_moves 0 the client gets Draining itself."""
    with pytest.raises(Draining):
        with_moves(0).move(Draining("leaves"), (), 0.0)
