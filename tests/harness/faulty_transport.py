"""A transport that hurts messages on purpose, around any other: what a bad network or a bad peer does.

A `FaultPlan` says what happens to which message; message 0 of a channel is its probe. Each fault happens once, so that
whatever is sent again gets through.
"""

import enum
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.common.errors import ChannelBroken
from services.kvtransfer.transport.base import Meeting, OpenTransport, Transport


class Fault(enum.Enum):
    """What happens to a message."""

    DROP = "drop"
    CORRUPT = "corrupt"
    ZERO = "zero"
    TRUNCATE = "truncate"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    HOLD = "hold"
    BREAK = "break"


HURTS = (Fault.CORRUPT, Fault.ZERO, Fault.TRUNCATE, Fault.DUPLICATE, Fault.REORDER, Fault.DROP, Fault.BREAK)


@dataclass
class FaultPlan:
    """Faults by message position; `reached` is set when a fault happens, HOLD waits for `go_on`.

    `always` happens to every message but the probe.
    """

    faults: dict[int, Fault] = field(default_factory=dict)
    always: Fault | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def take(self, position: int) -> Fault | None:
        """The fault for this message; happens once."""
        fault = self.faults.pop(position, self.always if position > 0 else None)
        if fault is not None:
            self.reached.set()
        return fault


class RandomFaults(FaultPlan):
    """Hurts every message but the probe with probability `share`; `num_hurt` says how many.

    Thread: shared by the channels of a process.
    """

    def __init__(self, share: float, kinds: Sequence[Fault], seed: int) -> None:
        super().__init__()
        self.num_hurt = 0
        self._share = share
        self._kinds = kinds
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def take(self, position: int) -> Fault | None:
        """The fault for this message, if any."""
        with self._lock:
            if position == 0 or self._rng.random() >= self._share:
                return None
            self.num_hurt += 1
            return self._rng.choice(self._kinds)


class FaultyTransport:
    """Sends through `inner`, hurt as planned; receives untouched."""

    def __init__(self, inner: Transport, plan: FaultPlan) -> None:
        self._inner = inner
        self._plan = plan
        self._position = 0
        self._held_back: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self._inner.device

    def send(self, tensor: Tensor, timeout_s: float) -> None:
        fault = self._plan.take(self._position)
        self._position += 1
        if fault is Fault.DROP:
            return
        if fault is Fault.REORDER and self._held_back is None:
            self._held_back = tensor.clone()  # the next message overtakes it
            return
        if fault is Fault.BREAK:
            self._inner.abort()
            raise ChannelBroken("the faulty transport broke")
        if fault is Fault.HOLD and not self._plan.go_on.wait(timeout_s):
            raise ChannelBroken("the faulty transport held a message for ever")
        if fault is Fault.DUPLICATE:
            self._inner.send(tensor, timeout_s)
        self._inner.send(_hurt(tensor, fault), timeout_s)
        held_back, self._held_back = self._held_back, None
        if held_back is not None:
            self._inner.send(held_back, timeout_s)

    def receive(self, tensor: Tensor, timeout_s: float) -> None:
        self._inner.receive(tensor, timeout_s)

    def abort(self) -> None:
        self._plan.go_on.set()
        self._inner.abort()

    def stats(self) -> dict[str, int]:
        return self._inner.stats()


def faulty(open_transport: OpenTransport, plan: FaultPlan) -> OpenTransport:
    """A way to build pairs whose sending side hurts messages as planned."""

    def build(meeting: Meeting, timeout_s: float) -> Transport:
        return FaultyTransport(open_transport(meeting, timeout_s), plan)

    return build


def _hurt(tensor: Tensor, fault: Fault | None) -> Tensor:
    if fault is Fault.TRUNCATE:
        return tensor[: tensor.numel() // 2].clone()
    if fault is Fault.ZERO:
        return torch.zeros_like(tensor)
    if fault is Fault.CORRUPT:
        hurt = tensor.clone()
        hurt[tensor.numel() // 3] ^= 0x40
        return hurt
    return tensor
