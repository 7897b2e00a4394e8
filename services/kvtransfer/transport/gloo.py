"""Carries tensors over TCP with gloo: the transport that works everywhere.

A pair is a process group of two ranks built directly on a store: no world group and no `init_process_group`, because
groups cannot shrink and one dead rank would take all others down. How such a pair fails was tried (torch 2.13): a
`wait` that times out closes the pair for good; `abort` does not wake a waiting receive, which stays until its own
timeout or until the peer's side closes.
"""

import contextlib
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroupGloo

from services.common.errors import ChannelBroken
from services.kvtransfer.rendezvous import Keys, PairStore, crossing_torch
from services.kvtransfer.transport.base import Meeting, Traffic
from services.kvtransfer.transport.gloo_address import GlooAddresses
from services.kvtransfer.transport.group import Group, broken_if_failed

_MAX_TAG = 2**31
# gloo waits for its connections as often as this, each time for the whole of its own timeout (torch 2.13, measured).
_CONNECT_WAITS = 5


class GlooStore(PairStore):
    """The store of a gloo pair: gloo gets to see only what `GlooAddresses` lets through."""

    def __init__(self, keys: Keys, timeout_s: float) -> None:
        super().__init__(keys, timeout_s)
        self._addresses = GlooAddresses()

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]
        """Sets a key."""
        with crossing_torch():
            value = self._addresses.own(value)
        super().set(key, value)

    def get(self, key: str) -> bytes:  # type: ignore[override]
        """Reads a key, waiting for it."""
        value = super().get(key)
        with crossing_torch():
            return self._addresses.other(value)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:  # type: ignore[override]
        """Waits for keys as long as the other side may take, which is longer than gloo would."""
        super().wait(keys)


class GlooTransport:
    """One side of a gloo pair; see `base.Transport`."""

    def __init__(self, group: Group, rank: int) -> None:
        self._group: Group | None = group
        self._peer = 1 - rank
        self._traffic = Traffic()

    @property
    def device(self) -> torch.device:
        """Gloo reads and writes host memory."""
        return torch.device("cpu")

    def send(self, tensor: Tensor, timeout_s: float) -> None:
        """Sends a message; see `base.Transport`."""
        # A tag of its own per message: a lost or doubled message then fails instead of shifting all later ones.
        group = self._open_group()
        with broken_if_failed("gloo send"):
            group.send([tensor], self._peer, self._traffic.sent_messages % _MAX_TAG).wait(timedelta(seconds=timeout_s))
        self._traffic.sent(tensor)

    def receive(self, tensor: Tensor, timeout_s: float) -> None:
        """Receives a message; see `base.Transport`."""
        group = self._open_group()
        with broken_if_failed("gloo receive"):
            tag = self._traffic.received_messages % _MAX_TAG
            group.recv([_whole_buffer(tensor)], self._peer, tag).wait(timedelta(seconds=timeout_s))
        self._traffic.received(tensor)

    def abort(self) -> None:
        """Spends the pair; the sockets close when a blocked operation has ended."""
        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(RuntimeError):  # a pair that failed already has nothing left to abort
                group.abort()

    def stats(self) -> dict[str, int]:
        """Messages and bytes in each direction."""
        return self._traffic.stats()

    def _open_group(self) -> Group:
        if self._group is None:
            raise ChannelBroken("the gloo pair was aborted")
        return self._group


def _whole_buffer(tensor: Tensor) -> Tensor:
    """All memory from where a tensor begins: gloo ends the process when a message is longer than what receives it."""
    start = tensor.storage_offset()
    return tensor.as_strided((tensor.untyped_storage().nbytes() - start,), (1,), start)


def open_gloo(meeting: Meeting, timeout_s: float) -> GlooTransport:
    """Builds one side of a gloo pair; blocks until the other side is there.

    Raises:
        ChannelBroken: the other side did not come in time, or the network does not let it.
    """
    options: Any = cast(Any, ProcessGroupGloo)._Options()  # torch's stubs leave the options out
    with broken_if_failed("gloo connect"):
        if meeting.interface:
            device = ProcessGroupGloo.create_device(interface=meeting.interface)
        else:
            device = ProcessGroupGloo.create_device(hostname=meeting.host)
        options._devices = [device]
        options._timeout = timedelta(seconds=timeout_s / _CONNECT_WAITS)
        options._threads = 1
        group = ProcessGroupGloo(GlooStore(meeting.keys, timeout_s), meeting.rank, 2, options)
        return GlooTransport(cast(Group, group), meeting.rank)
