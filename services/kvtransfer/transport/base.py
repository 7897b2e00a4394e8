"""What a channel needs from whatever carries its bytes.

A transport joins exactly two ranks: 0 is the source, 1 the sink. It carries uint8 tensors in order, and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.kvtransfer.rendezvous import Keys

SOURCE_RANK = 0
SINK_RANK = 1


class Transport(Protocol):
    """One side of a pair.

    `send` and `receive` block and run on the channel's own thread; `abort` and `stats` may be called on any thread.
    After an error or a timeout the pair is spent: every later operation fails.
    """

    @property
    def device(self) -> torch.device:
        """Where the tensors must be."""
        ...

    def send(self, tensor: Tensor, timeout_s: float) -> None:
        """Sends a contiguous uint8 tensor; returns once it may be changed again.

        Raises:
            ChannelBroken: the peer is gone or the time is up.
        """
        ...

    def receive(self, tensor: Tensor, timeout_s: float) -> None:
        """Fills a contiguous uint8 tensor with the next message of the peer, which has this many bytes.

        A message that is longer than was announced may overwrite what lies behind the tensor in its storage.

        Raises:
            ChannelBroken: the peer is gone or the time is up.
        """
        ...

    def abort(self) -> None:
        """Spends the pair; idempotent. A blocked operation ends now or at its own timeout."""
        ...

    def stats(self) -> dict[str, int]:
        """Messages and bytes in each direction."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the two sides of one channel meet, and from which address or interface this side connects.

    `name` is the same on both sides and used by no other channel.
    """

    rank: int
    name: str
    keys: Keys
    host: str = "127.0.0.1"
    interface: str = ""


OpenTransport = Callable[[Meeting, float], Transport]
"""Builds one side of a pair within a timeout in seconds; blocks; raises ChannelBroken."""

Transports = Mapping[str, OpenTransport]
"""Ways to build a pair, by the name that layouts use."""


class Traffic:
    """Counts what a transport has carried."""

    def __init__(self) -> None:
        self.sent_messages = 0
        self.sent_bytes = 0
        self.received_messages = 0
        self.received_bytes = 0

    def sent(self, tensor: Tensor) -> None:
        """One message has left."""
        self.sent_messages += 1
        self.sent_bytes += tensor.numel()

    def received(self, tensor: Tensor) -> None:
        """One message has arrived."""
        self.received_messages += 1
        self.received_bytes += tensor.numel()

    def stats(self) -> dict[str, int]:
        """Every count by name."""
        return {
            "sent_messages": self.sent_messages,
            "sent_bytes": self.sent_bytes,
            "received_messages": self.received_messages,
            "received_bytes": self.received_bytes,
        }
