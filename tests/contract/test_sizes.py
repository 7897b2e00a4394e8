"""Files and functions stay small enough to be read at once."""

import ast

import pytest

from scripts import check_sizes


def test_nothing_is_too_large() -> None:
    """Every file and function keeps its bound, or is listed with a reason."""
    assert check_sizes.complaints() == []


def test_every_exemption_has_a_reason() -> None:
    """An entry of LONG_FILES says why the file is one."""
    assert all(len(reason) > 20 for reason in check_sizes.LONG_FILES.values())


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def long():\n" + "    x = 1\n" * 60, "61 lines"),
        ("def wide(a, b, c, d, *, e, f, g): ...", "7 parameters"),
        ("class A:\n    def wide(self, a, b, c, d, e, f): ...", ""),
    ],
)
def test_the_check_sees_what_is_too_large(source: str, complaint: str) -> None:
    """A long function and a wide one are found, a method with six parameters is not."""
    found = list(check_sizes.function_complaints("x.py", ast.parse(source)))
    assert [complaint in each for each in found] == ([True] if complaint else [])


def test_the_check_sees_long_files() -> None:
    """A file over its bound is found; a test file may be a little longer."""
    assert list(check_sizes.file_complaints("services/x.py", 251))
    assert not list(check_sizes.file_complaints("tests/x.py", 300))
    assert list(check_sizes.file_complaints("tests/x.py", 301))
