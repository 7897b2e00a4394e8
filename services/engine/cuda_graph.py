"""Captures work on a CUDA device once, so that it can be replayed with one launch.

Not run: no CUDA device was at hand when this was written; `tests/gpu` holds its tests.
"""

from collections.abc import Callable

import torch

Compute = Callable[[], torch.Tensor]
# What is done once may allocate, compile or tune; none of that may happen while it is captured.
_WARM_UPS = 2


class CudaGraphs:
    """Makes graphs that share one memory pool: they are replayed one after the other, never at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def capture(self, compute: Compute) -> Compute:
        """What replays `compute` on the current stream; its result holds until any graph of the pool is replayed.

        Raises:
            RuntimeError: it does something that cannot be captured, such as waiting for the device.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                compute()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls count: others of the process may go on using the device.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay
