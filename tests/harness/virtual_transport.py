"""A transport in memory on virtual time: both sides of a pair live in one event loop's process.

As `services.kvtransfer.transport.memory`, with waits on a `VirtualClock` and with an end for each process.
"""

import threading
from collections import deque

import torch
from torch import Tensor

from services.common.errors import ChannelBroken
from services.kvtransfer.transport.base import Meeting, Traffic
from tests.harness.memory_rpc import Network, current_process
from tests.harness.virtual_time import VirtualClock

SEND_S = 0.001


class _Pair:
    """What the two sides share: messages by direction, the processes at its ends, and whether it is spent."""

    def __init__(self) -> None:
        self.messages: tuple[deque[Tensor], deque[Tensor]] = (deque(), deque())
        self.owners: dict[int, str] = {}
        self.is_spent = False


class VirtualTransport:
    """One side of a pair; see `base.Transport`."""

    def __init__(self, exchange: "VirtualExchange", pair: _Pair, rank: int) -> None:
        self._exchange = exchange
        self._pair = pair
        self._outgoing, self._incoming = pair.messages[rank], pair.messages[1 - rank]
        self._traffic = Traffic()

    @property
    def device(self) -> torch.device:
        """Host memory."""
        return torch.device("cpu")

    def send(self, tensor: Tensor, timeout_s: float) -> None:
        """As `base.Transport.send`."""
        clock = self._exchange.clock
        clock.sleep(SEND_S)
        self._check(clock.wait(lambda: self._pair.is_spent or not self._exchange.is_frozen(self._pair), timeout_s))
        self._outgoing.append(tensor.clone())
        clock.notify()
        self._traffic.sent(tensor)

    def receive(self, tensor: Tensor, timeout_s: float) -> None:
        """As `base.Transport.receive`."""
        is_there = self._exchange.clock.wait(lambda: self._pair.is_spent or bool(self._incoming), timeout_s)
        self._check(is_there)
        message = self._incoming.popleft()
        common = min(len(message), len(tensor))
        tensor[:common] = message[:common]
        self._traffic.received(tensor)

    def abort(self) -> None:
        """As `base.Transport.abort`."""
        self._pair.is_spent = True
        self._exchange.clock.notify()

    def stats(self) -> dict[str, int]:
        """As `base.Transport.stats`."""
        return self._traffic.stats()

    def _check(self, is_done: bool) -> None:
        if not is_done:
            self.abort()
            raise ChannelBroken("the peer in memory was silent too long")
        if self._pair.is_spent:
            raise ChannelBroken("the pair in memory was aborted")


class VirtualExchange:
    """Where both sides of every pair meet, by the meeting's name."""

    def __init__(self, clock: VirtualClock, network: Network) -> None:
        self.clock = clock
        self._network = network
        self._lock = threading.Lock()
        self._waiting: dict[str, _Pair] = {}
        self._pairs: list[_Pair] = []

    def open(self, meeting: Meeting, timeout_s: float) -> VirtualTransport:
        """As `base.OpenTransport`."""
        with self._lock:
            pair = self._waiting.setdefault(meeting.name, _Pair())
            pair.owners[meeting.rank] = current_process()
            if len(pair.owners) == 2:
                self._pairs.append(self._waiting.pop(meeting.name))
        self.clock.notify()
        if not self.clock.wait(lambda: len(pair.owners) == 2 or pair.is_spent, timeout_s) or pair.is_spent:
            raise ChannelBroken("the other side of the pair in memory did not come in time")
        return VirtualTransport(self, pair, meeting.rank)

    def cut(self, process: str) -> None:
        """A process is gone: every pair with it is spent."""
        for pair in [*self._pairs, *self._waiting.values()]:
            if process in pair.owners.values():
                pair.is_spent = True
        self._pairs = [pair for pair in self._pairs if not pair.is_spent]
        self.clock.notify()

    def is_frozen(self, pair: _Pair) -> bool:
        """True while one of its processes stands still."""
        return any(self._network.is_frozen(owner) for owner in pair.owners.values())
