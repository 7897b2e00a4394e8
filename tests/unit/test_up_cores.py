"""How `baton up` divides cores."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.cores import ordered_cores, spell
from services.common.affinity import divide, parse_cpus

core_lists = st.lists(st.integers(0, 300), min_size=1, max_size=64, unique=True)


@given(core_lists, st.integers(1, 64))
def test_every_worker_gets_a_core_and_none_is_invented(cores: list[int], workers: int) -> None:
    """Each worker has at least one core, all of them from the list."""
    shares = divide(cores, workers)
    assert len(shares) == workers
    assert all(share and set(share) <= set(cores) for share in shares)


@given(core_lists, st.data())
def test_shares_are_disjoint_equal_and_complete_while_there_are_enough_cores(
    cores: list[int], data: st.DataObject
) -> None:
    """With at least a core each, no core is given twice, none is left over, and sizes differ by at most one."""
    shares = divide(cores, data.draw(st.integers(1, len(cores))))
    assert [core for share in shares for core in share] == cores
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.lists(st.integers(0, 300), max_size=64, unique=True))
def test_spelled_cores_are_what_a_worker_reads(cores: list[int]) -> None:
    """`spell` writes what `--cpus` parses back to the same cores."""
    assert parse_cpus(spell(cores)) == frozenset(cores)


@pytest.mark.parametrize(("cores", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 5), "0-2,5"), ((7, 6), "6-7")])
def test_neighbours_are_spelled_as_ranges(cores: tuple[int, ...], text: str) -> None:
    """Neighbouring cores become one range."""
    assert spell(cores) == text


def test_the_usable_cores_are_those_of_this_process() -> None:
    """A restriction of this process, by taskset or a container, is respected."""
    assert set(ordered_cores()) == os.sched_getaffinity(0)
