"""Carries tensors between GPUs with NCCL.

Not run: no machine with two CUDA devices was at hand when this was written; `tests/gpu` holds its tests.

How such a pair fails differs from gloo: a point-to-point call whose peer died can hang without an error
(pytorch#113281), grouped calls ignore their time limit (pytorch#120741), and destroying a group can hang its survivors.
So completion is polled with a limit of our own, any doubt aborts the communicator, and aborting happens on a thread
that may be lost.

torch runs a point-to-point call on a stream inside the group, which waits for the caller's current stream when the call
is made and is waited for by nobody. An event on the caller's stream therefore says nothing about the call; only its
`Work` does.
"""

import contextlib
import os
import threading
import time
from datetime import timedelta
from typing import Protocol, cast

import torch
from torch import Tensor

from services.common.errors import ChannelBroken
from services.kvtransfer.rendezvous import PairStore
from services.kvtransfer.transport.base import Meeting, Traffic
from services.kvtransfer.transport.group import Group, broken_if_failed

_POLL_S = 0.0002


class NcclWork(Protocol):
    """A call that was started; torch's stubs leave these methods out."""

    def is_completed(self) -> bool:
        """True once it is done or has failed; does not block."""
        ...

    def exception(self) -> object:
        """Why it failed, or None."""
        ...


class NcclTransport:
    """One side of an NCCL pair; see `base.Transport`.

    All work is on a stream of its own, so that it never waits for, nor delays, the engine's kernels. What the channel's
    thread does to staging is on that stream too, for `open_nccl` makes it the thread's own.
    """

    def __init__(self, group: Group, rank: int, device: torch.device) -> None:
        self._group: Group | None = group
        self._peer = 1 - rank
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._traffic = Traffic()
        self._is_aborted = threading.Event()
        self._moving: Tensor | None = None

    @property
    def stream(self) -> torch.cuda.Stream:
        """Where the pair's work is queued."""
        return self._stream

    @property
    def device(self) -> torch.device:
        """The GPU whose memory is read and written."""
        return self._device

    def send(self, tensor: Tensor, timeout_s: float) -> None:
        """Sends a message; see `base.Transport`."""
        group = self._open_group()
        self._moving = tensor
        with broken_if_failed("NCCL send"):
            # Whoever filled the tensor did so on the thread's stream; where that is ours, there is nothing to wait for.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                self._finish(group.send([tensor], self._peer, 0), timeout_s)
        self._traffic.sent(tensor)

    def receive(self, tensor: Tensor, timeout_s: float) -> None:
        """Receives a message; see `base.Transport`."""
        group = self._open_group()
        self._moving = tensor
        with broken_if_failed("NCCL receive"), torch.cuda.stream(self._stream):
            self._finish(group.recv([tensor], self._peer, 0), timeout_s)
        self._traffic.received(tensor)

    def abort(self) -> None:
        """Spends the pair; a blocked operation ends at its next poll."""
        self._is_aborted.set()
        group, self._group = self._group, None
        if group is not None:
            # The thread holds the tensor until no kernel can write to it any more.
            threading.Thread(target=_abort, args=(group, self._moving), name="nccl-abort", daemon=True).start()

    def stats(self) -> dict[str, int]:
        """Messages and bytes in each direction."""
        return self._traffic.stats()

    def _open_group(self) -> Group:
        if self._group is None:
            raise ChannelBroken("the NCCL pair was aborted")
        return self._group

    def _finish(self, work: object, timeout_s: float) -> None:
        try:
            await_work(cast(NcclWork, work), self._is_aborted, timeout_s)
        except BaseException:
            self.abort()
            raise
        self._moving = None


def await_work(work: NcclWork, is_aborted: threading.Event, timeout_s: float) -> None:
    """Polls a call until it is done: `Work.wait` only orders streams and would not see a dead peer.

    Raises:
        ChannelBroken: the pair was aborted, the call failed, or the time is up.
    """
    deadline = time.monotonic() + timeout_s
    while not work.is_completed():
        if is_aborted.is_set():
            raise ChannelBroken("the NCCL pair was aborted")
        if time.monotonic() > deadline:
            raise ChannelBroken(f"the NCCL peer was silent for {timeout_s:.1f} s")
        time.sleep(_POLL_S)
    error = work.exception()
    if error is not None:
        raise ChannelBroken(f"the NCCL pair failed: {error}")
    if is_aborted.is_set():  # what ended the call may have been the abort
        raise ChannelBroken("the NCCL pair was aborted")


def open_nccl(meeting: Meeting, timeout_s: float, device_index: int = 0) -> NcclTransport:
    """Builds one side of an NCCL pair; blocks until the other side is there.

    Runs on the channel's thread, whose current stream is the pair's from then on. A worker sees one GPU
    (CUDA_VISIBLE_DEVICES) and uses device 0. The channel's thread would not know of another one: the current device is
    a property of each thread.

    Raises:
        ChannelBroken: there is no GPU, or the other side did not come in time.
    """
    if not torch.cuda.is_available():
        raise ChannelBroken("the nccl transport needs a CUDA device; use gloo")
    # Builds of torch without CUDA do not have it.
    from torch._C._distributed_c10d import ProcessGroupNCCL

    device = torch.device("cuda", device_index)
    # Else torch's watchdog ends the whole process when a peer dies; here that is one channel's error.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)  # pyright: ignore[reportPrivateUsage]
    with broken_if_failed("NCCL connect"):
        group = ProcessGroupNCCL(PairStore(meeting.keys, timeout_s), meeting.rank, 2, options)
        group.eager_connect_single_device(device)
        transport = NcclTransport(cast(Group, group), meeting.rank, device)
    torch.cuda.set_stream(transport.stream)
    return transport


def _abort(group: Group, moving: Tensor | None) -> None:
    with contextlib.suppress(RuntimeError):  # the communicator is spent either way
        group.abort()
    del moving
