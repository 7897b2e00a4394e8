"""Notices an engine thread that no longer comes out of what it does. Pure."""


class Watchdog:
    """Looks at the thread again and again; stalled where it has been inside one turn for `looks` looks in a row.

    Looks are counted instead of seconds, because nobody looks while the process itself stands still: a worker that was
    stopped and goes on is not taken for stalled.
    """

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._turns = -1
        self._same = 0

    @property
    def is_stalled(self) -> bool:
        """True while the turn goes on."""
        return self._same >= self._looks

    def look(self, turns: int, *, is_busy: bool) -> bool:
        """Takes note of how many turns there were and whether one runs; True where that changed `is_stalled`."""
        before = self.is_stalled
        self._same = self._same + 1 if is_busy and turns == self._turns else 0
        self._turns = turns
        return self.is_stalled is not before
