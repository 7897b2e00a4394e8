"""Stop strings over text that comes in pieces."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.frontend.stop_strings import Scan, StopStrings

_TEXT = st.text(alphabet="ab.", max_size=40)
_STOPS = st.lists(st.text(alphabet="ab.", min_size=1, max_size=5), max_size=4)


def _scan(pieces: list[str], stops: list[str]) -> tuple[str, str]:
    """All text that comes out of the pieces, and the match."""
    scanner = StopStrings(stops)
    shown = ""
    for piece in pieces:
        scan = scanner.feed(piece)
        shown += scan.text
        if scan.match:
            return shown, scan.match
    return shown + scanner.flush(), ""


def _truth(text: str, stops: list[str]) -> tuple[str, str]:
    """What reading one character after the other gives: the match that ends first, the longest of those."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, ""


@given(text=_TEXT, stops=_STOPS, cuts=st.lists(st.integers(0, 40), max_size=6))
def test_result_does_not_depend_on_the_split(text: str, stops: list[str], cuts: list[int]) -> None:
    """However the text is cut into pieces, what is shown is the text before the first match."""
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
    assert _scan(pieces, stops) == _truth(text, stops)


@given(text=_TEXT, stops=_STOPS)
def test_nothing_is_held_without_need(text: str, stops: list[str]) -> None:
    """What is held back is the beginning of a stop string, and never as long as the longest one."""
    scanner = StopStrings(stops)
    for character in text:
        if scanner.feed(character).match:
            return
        assert not scanner.held or any(stop.startswith(scanner.held) for stop in stops)
        assert len(scanner.held) < max(map(len, stops), default=1)


@pytest.mark.parametrize(
    ("pieces", "stops", "want"),
    [
        (["ab", "c"], ["abc", "b"], ("a", "b")),
        (["abc"], ["abc", "b"], ("a", "b")),
        (["x\n", "\nUser:"], ["\n\nUser"], ("x", "\n\nUser")),
        (["aab"], ["ab"], ("a", "ab")),
        (["abab", "c"], ["ababc", "bc"], ("", "ababc")),
        (["stop"], ["stopper"], ("stop", "")),
    ],
)
def test_examples(pieces: list[str], stops: list[str], want: tuple[str, str]) -> None:
    """Matches over borders, matches inside others, repeated beginnings, and a beginning that never ends."""
    assert _scan(pieces, stops) == want


def test_without_stop_strings_text_passes() -> None:
    """No stop strings, no delay."""
    assert StopStrings(()).feed("any text") == Scan("any text")
