"""Who leaves a full line: the fewest and the last, and nobody for a newcomer that stays outside."""

from hypothesis import given
from hypothesis import strategies as st

from services.common.displacement import turned_away

ROOM = 20


@given(st.lists(st.integers(1, ROOM), max_size=8), st.integers(1, 2 * ROOM), st.integers(0, 8))
def test_the_last_leave_and_no_more_than_needed(sizes: list[int], size: int, place: int):
    """What stays fits, with one more of those who left it would not, and the newcomer never leaves beside others."""
    while sum(sizes) > ROOM:
        sizes.pop()
    line = list(enumerate([*sizes[:place], size, *sizes[place:]]))
    newcomer = line[min(place, len(sizes))]

    def fits(kept: int) -> bool:
        return sum(each for _, each in line[:kept]) <= ROOM

    gone = turned_away(line, newcomer, fits)
    stay = [each for each in line if each not in gone]
    assert sum(each for _, each in stay) <= ROOM
    if newcomer in gone:
        assert gone == [newcomer]
        assert not fits(line.index(newcomer) + 1)
    elif gone:
        assert gone == list(reversed(line[len(stay) :]))
        assert not fits(len(stay) + 1)
