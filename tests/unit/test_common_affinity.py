"""Lists of cores."""

import os
import threading

import pytest

from services.common.affinity import available_cpus, parse_cpus, pin_cpus
from services.common.config import ConfigError


@pytest.mark.parametrize(
    ("text", "cores"), [("", set()), ("0", {0}), ("0,2-4", {0, 2, 3, 4}), (" 1 , 3 ", {1, 3}), ("5-5", {5})]
)
def test_lists_and_ranges(text: str, cores: set[int]):
    """As taskset writes them."""
    assert parse_cpus(text) == cores


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "1;2", "0x1"])
def test_what_is_no_list_is_refused(text: str):
    """With the part that is wrong."""
    with pytest.raises(ConfigError, match="cpus"):
        parse_cpus(text)


def test_a_core_that_may_not_be_used_is_refused():
    """Instead of running somewhere else in silence."""
    with pytest.raises(ConfigError, match="may not be used"):
        pin_cpus("100000")


def test_pinning_holds_for_the_thread_that_asks():
    """And an empty list changes nothing."""
    core = min(available_cpus())
    found: list[set[int]] = []

    def pin() -> None:
        assert pin_cpus("") == os.sched_getaffinity(0)
        pin_cpus(str(core))
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=pin)
    thread.start()
    thread.join(10)
    assert found == [{core}]
