"""What the command line says of an answer."""

import pytest

from services.cli.answer_view import stage_line
from services.common.types import StageTimes, Usage
from services.frontend.fallback import Fallback
from services.frontend.request import Completion
from services.frontend.routing.shortcut import Shortcut


@pytest.mark.parametrize(
    ("facts", "mark"),
    [
        ({"shortcut": Shortcut.CACHED_PROMPT}, "shortcut: cached prompt"),
        ({"fallback": Fallback.NO_PREFILL_WORKER}, "fell back: no prefill worker"),
        ({"hedged": True}, "hedged"),
        ({"moves": 1}, "moved once"),
        ({}, "p → d"),
    ],
)
def test_the_line_under_an_answer_ends_with_what_went_another_way(facts: dict[str, object], mark: str) -> None:
    """Choices, fallbacks, hedges and moves are each named, and nothing is where all went the usual way."""
    given = {"usage": Usage(3, 2), "stages": StageTimes(), "seed": 0, "prefill_worker_id": "p", "decode_worker_id": "d"}
    assert stage_line(Completion(**given, **facts)).split(" · ")[-1] == mark  # type: ignore[arg-type]
