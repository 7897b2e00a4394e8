"""Moves token ranges in and out of KV on a CUDA device, on a stream of its own.

Not measured: no CUDA device was at hand when this was written; `tests/gpu` holds its tests. A step returns while the
device may still be at work on it, as a prompt's chunk that samples nothing does. So the engine marks the end of each
step, and a copy waits on the device for the last mark: whatever was computed or freed before the copy was asked for is
then in place. It waits for no later step; the host waits for its own copy alone.
"""

from collections.abc import Sequence

import torch


class CudaCopier:
    """Copies between a KV tensor on a device and tensors of tokens.

    Thread: `mark` on the engine's, the others on any; the stream runs copies one after the other.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._stream = torch.cuda.Stream(tensor.device)
        self._marked = torch.cuda.Event()
        self.mark()

    def mark(self) -> None:
        """Copies that are asked for from now on wait for what the calling thread's stream has been given so far."""
        # An event of its own each time: a copy on another thread may be waiting for the one before.
        marked = torch.cuda.Event()
        marked.record(torch.cuda.current_stream(self._tensor.device))
        self._marked = marked

    def read(self, block_ids: Sequence[int], start: int, end: int, out: torch.Tensor) -> None:
        """Token positions start … end-1 into `out`, on the host or the device."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._marked)
            gathered = self._tokens(block_ids, start, end)
            out.copy_(gathered, non_blocking=True)
            self._wait()

    def write(self, block_ids: Sequence[int], start: int, end: int, data: torch.Tensor) -> None:
        """`data`, on the host or the device, into token positions start … end-1; converted to the KV's dtype."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._marked)
            moved = data.to(self._tensor.device, non_blocking=True).to(self._tensor.dtype)
            blocks, offsets = self._slots(block_ids, start, end)
            # Indexing by both brings the token dimension to where the two dimensions were: fourth of five.
            self._tensor[:, :, :, blocks, offsets] = moved
            self._wait()

    def _tokens(self, block_ids: Sequence[int], start: int, end: int) -> torch.Tensor:
        blocks, offsets = self._slots(block_ids, start, end)
        return self._tensor[:, :, :, blocks, offsets]

    def _slots(self, block_ids: Sequence[int], start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        device, size = self._tensor.device, self._tensor.shape[4]
        positions = torch.arange(start, end, device=device)
        table = torch.tensor(block_ids, device=device)
        return table[positions // size], positions % size

    def _wait(self) -> None:
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        event.synchronize()
