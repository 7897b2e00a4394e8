"""Reading logs while they are written."""

import pathlib

from services.cli.log_follower import LogFollower


def test_lines_come_whole_and_once(tmp_path: pathlib.Path) -> None:
    """A line is given when its end is written, not before and not twice."""
    path = tmp_path / "a.log"
    follower = LogFollower(path)
    assert follower.new_lines() == []
    with path.open("wb", buffering=0) as log:
        log.write(b"one\ntw")
        assert follower.new_lines() == ["one"]
        assert follower.new_lines() == []
        log.write("o ü\n".encode())
        assert follower.new_lines() == ["two ü"]


def test_garbage_does_not_stop_it(tmp_path: pathlib.Path) -> None:
    """Bytes that are no text are shown as such, and reading goes on."""
    path = tmp_path / "a.log"
    path.write_bytes(b"\xff\nnext\n")
    assert LogFollower(path).new_lines() == ["\N{REPLACEMENT CHARACTER}", "next"]
