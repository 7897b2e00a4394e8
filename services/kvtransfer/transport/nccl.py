"""Carries tensors between GPUs with NCCL.

How such a pair fails differs from gloo: a point-to-point call whose peer died can hang without an error
(pytorch#113281), grouped calls ignore their time limit (pytorch#120741), and destroying a group can hang its survivors.
So completion is polled on an event with a limit of our own, any doubt aborts the communicator, and aborting happens on
a thread that may be lost.
"""

import contextlib
import threading
import time
from datetime import timedelta
from typing import cast

import torch
from torch import Tensor

from services.common.errors import ChannelBroken
from services.kvtransfer.rendezvous import PairStore
from services.kvtransfer.transport.base import Meeting, Traffic
from services.kvtransfer.transport.group import Group, broken_if_failed

_POLL_S = 0.0002


class NcclTransport:
    """One side of an NCCL pair; see `base.Transport`.

    All work is on a stream of its own, so that it never waits for, nor delays, the engine's kernels.
    """

    def __init__(self, group: Group, rank: int, device: torch.device) -> None:
        self._group: Group | None = group
        self._peer = 1 - rank
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._traffic = Traffic()
        self._is_aborted = threading.Event()

    @property
    def device(self) -> torch.device:
        """The GPU whose memory is read and written."""
        return self._device

    def send(self, tensor: Tensor, timeout_s: float) -> None:
        """Sends a message; see `base.Transport`."""
        group = self._open_group()
        with broken_if_failed("NCCL send"), torch.cuda.stream(self._stream):
            # The staging buffer was filled on the thread's default stream.
            self._stream.wait_stream(torch.cuda.default_stream(self._device))
            group.send([tensor], self._peer, 0)
            self._wait(timeout_s)
        self._traffic.sent(tensor)

    def receive(self, tensor: Tensor, timeout_s: float) -> None:
        """Receives a message; see `base.Transport`."""
        group = self._open_group()
        with broken_if_failed("NCCL receive"), torch.cuda.stream(self._stream):
            group.recv([tensor], self._peer, 0)
            self._wait(timeout_s)
        self._traffic.received(tensor)

    def abort(self) -> None:
        """Spends the pair; a blocked operation ends at its next poll."""
        self._is_aborted.set()
        group, self._group = self._group, None
        if group is not None:
            threading.Thread(target=_abort, args=(group,), name="nccl-abort", daemon=True).start()

    def stats(self) -> dict[str, int]:
        """Messages and bytes in each direction."""
        return self._traffic.stats()

    def _open_group(self) -> Group:
        if self._group is None:
            raise ChannelBroken("the NCCL pair was aborted")
        return self._group

    def _wait(self, timeout_s: float) -> None:
        """Waits for the stream by polling an event: `Work.wait` only orders streams and would not see a dead peer."""
        done = torch.cuda.Event()
        done.record(self._stream)
        deadline = time.monotonic() + timeout_s
        while not done.query():
            if self._is_aborted.is_set():
                raise ChannelBroken("the NCCL pair was aborted")
            if time.monotonic() > deadline:
                self.abort()
                raise ChannelBroken(f"the NCCL peer was silent for {timeout_s:.1f} s")
            time.sleep(_POLL_S)


def open_nccl(meeting: Meeting, timeout_s: float, device_index: int = 0) -> NcclTransport:
    """Builds one side of an NCCL pair; blocks until the other side is there.

    A worker sees one GPU (CUDA_VISIBLE_DEVICES) and uses device 0. The channel's thread would not know of another one:
    the current device is a property of each thread.

    Raises:
        ChannelBroken: there is no GPU, or the other side did not come in time.
    """
    if not torch.cuda.is_available():
        raise ChannelBroken("the nccl transport needs a CUDA device; use gloo")
    # Builds of torch without CUDA do not have it.
    from torch._C._distributed_c10d import ProcessGroupNCCL

    device = torch.device("cuda", device_index)
    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)  # pyright: ignore[reportPrivateUsage]
    with broken_if_failed("NCCL connect"):
        group = ProcessGroupNCCL(PairStore(meeting.keys, timeout_s), meeting.rank, 2, options)
        group.eager_connect_single_device(device)
        return NcclTransport(cast(Group, group), meeting.rank, device)


def _abort(group: Group) -> None:
    with contextlib.suppress(RuntimeError):  # the communicator is spent either way
        group.abort()
