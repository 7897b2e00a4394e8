"""How a call between GPUs is waited for, on calls that end in each possible way."""

import threading

import pytest

from services.common.errors import ChannelBroken
from services.kvtransfer.transport.nccl import await_work


class Call:
    """Is done when it was asked so many times."""

    def __init__(self, questions: int, error: object = None) -> None:
        self._left = questions
        self.asked = 0
        self._error = error

    def is_completed(self) -> bool:
        self._left -= 1
        self.asked += 1
        return self._left <= 0

    def exception(self) -> object:
        return self._error


def test_a_call_is_waited_for_until_it_is_done() -> None:
    """It is asked again until it says so, not only whether the stream is idle."""
    call = Call(5)
    await_work(call, threading.Event(), 60.0)
    assert call.asked == 5


def test_a_failed_call_is_an_error() -> None:
    """A call that ended with an error moved nothing that can be used."""
    with pytest.raises(ChannelBroken, match="remote process exited"):
        await_work(Call(2, RuntimeError("remote process exited")), threading.Event(), 60.0)


def test_a_silent_peer_is_an_error_in_time() -> None:
    """A call that never ends is given up at its limit."""
    with pytest.raises(ChannelBroken, match="silent"):
        await_work(Call(10**9), threading.Event(), 0.01)


@pytest.mark.parametrize("questions", [1, 10**9])
def test_an_aborted_pair_is_an_error(questions: int) -> None:
    """Also where the abort is what ended the call."""
    aborted = threading.Event()
    aborted.set()
    with pytest.raises(ChannelBroken, match="aborted"):
        await_work(Call(questions), aborted, 60.0)
