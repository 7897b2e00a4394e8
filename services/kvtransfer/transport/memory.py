"""Carries tensors inside one process: for a worker that is both source and sink, and for tests.

Nothing is copied twice: a receive copies straight out of the sender's tensor.
"""

import threading
from collections import deque

import torch
from torch import Tensor

from services.common.errors import ChannelBroken
from services.kvtransfer.transport.base import Meeting, Traffic


class _Lane:
    """One direction of a pair: the sender's tensor waits here until the receiver has copied it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[Tensor] = deque()
        self.is_aborted = False

    def abort(self) -> None:
        with self.changed:
            self.is_aborted = True
            self.waiting.clear()
            self.changed.notify_all()


class MemoryTransport:
    """One side of a pair in memory; see `base.Transport`. Abort wakes both sides at once."""

    def __init__(self, outgoing: _Lane, incoming: _Lane) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._traffic = Traffic()

    @property
    def device(self) -> torch.device:
        """Host memory."""
        return torch.device("cpu")

    def send(self, tensor: Tensor, timeout_s: float) -> None:
        """Offers a tensor and waits until it was copied; see `base.Transport`."""
        lane = self._outgoing
        with lane.changed:
            lane.waiting.append(tensor)
            lane.changed.notify_all()
            is_taken = lane.changed.wait_for(lambda: lane.is_aborted or not lane.waiting, timeout_s)
        self._check(is_taken)
        self._traffic.sent(tensor)

    def receive(self, tensor: Tensor, timeout_s: float) -> None:
        """Copies the next message out of the sender's tensor; see `base.Transport`."""
        lane = self._incoming
        with lane.changed:
            has_message = lane.changed.wait_for(lambda: lane.is_aborted or bool(lane.waiting), timeout_s)
            if lane.waiting:
                message = lane.waiting[0]
                common = min(len(message), len(tensor))
                tensor.numpy()[:common] = message.numpy()[:common]
                lane.waiting.popleft()
                lane.changed.notify_all()
        self._check(has_message)
        self._traffic.received(tensor)

    def abort(self) -> None:
        """Spends both directions."""
        self._outgoing.abort()
        self._incoming.abort()

    def stats(self) -> dict[str, int]:
        """Messages and bytes in each direction."""
        return self._traffic.stats()

    def _check(self, is_done: bool) -> None:
        if not is_done:
            self.abort()
        if self._outgoing.is_aborted or self._incoming.is_aborted:
            raise ChannelBroken(
                "the pair in memory was aborted" if is_done else "the peer in memory was silent too long"
            )


class MemoryExchange:
    """Where both sides of pairs in one process meet, by the meeting's name. One exchange serves a process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, tuple[_Lane, _Lane]] = {}

    def open(self, meeting: Meeting, timeout_s: float) -> MemoryTransport:
        """Builds one side of a pair; blocks until the other side is there.

        Raises:
            ChannelBroken: the other side did not come in time.
        """
        name = meeting.name
        with self._changed:
            lanes = self._waiting.pop(name, None)
            if lanes is not None:
                self._changed.notify_all()
            else:
                lanes = self._waiting[name] = (_Lane(), _Lane())
                if not self._changed.wait_for(lambda: name not in self._waiting, timeout_s):
                    del self._waiting[name]
                    raise ChannelBroken("the other side of the pair in memory did not come in time")
        from_source, from_sink = lanes
        if meeting.rank == 0:
            return MemoryTransport(from_source, from_sink)
        return MemoryTransport(from_sink, from_source)
