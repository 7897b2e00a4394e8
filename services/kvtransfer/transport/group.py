"""What gloo and NCCL pairs have in common: a process group of two ranks, as far as it is used here."""

import contextlib
from collections.abc import Generator
from datetime import timedelta
from typing import Protocol

from torch import Tensor

from services.common.errors import ChannelBroken


class Work(Protocol):
    """An operation that was started."""

    def wait(self, timeout: timedelta) -> bool:
        """Waits until it is done; raises RuntimeError where it failed or the time is up."""
        ...


class Group(Protocol):
    """The part of torch's process groups that a pair uses; torch's own stubs leave these methods out."""

    def send(self, tensors: list[Tensor], dstRank: int, tag: int) -> Work:
        """Starts to send."""
        ...

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int) -> Work:
        """Starts to receive."""
        ...

    def abort(self) -> None:
        """Spends the group."""
        ...


@contextlib.contextmanager
def broken_if_failed(doing: str) -> Generator[None]:
    """Raises as ChannelBroken what torch raises; `doing` says what could not be done."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ChannelBroken(f"{doing} failed: {reason}") from error
