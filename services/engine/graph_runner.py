"""Runs decode steps by replaying what was captured for their size, and all other steps eagerly.

A decode step launches hundreds of small kernels, and with few requests the host takes longer to launch them than the
device to run them; a graph is one launch. Captured are steps that feed one token of each request, for each bucket of
batch sizes; fewer requests are padded to the next bucket.
"""

from collections.abc import Callable, Sequence

import torch

from services.common.config import ConfigError
from services.engine.attention.device_batch import CapturableBackend
from services.engine.cuda_graph import Compute, CudaGraphs
from services.engine.decode_buckets import RowShape, bucket_sizes, choose_bucket
from services.engine.decode_buffers import DecodeBuffers
from services.engine.packing import PackedStep
from services.engine.paged_kv import PagedKv
from services.engine.runner import Runner

Capture = Callable[[Compute], Compute]
# Blocks at the end of the KV that padding rows write to.
SPARE_BLOCKS = 1


class GraphRunner:
    """As `Runner`; `replayed` counts steps that were replayed. Thread: one, the engine's."""

    def __init__(self, eager: Runner, buffers: Sequence[DecodeBuffers], backend: CapturableBackend) -> None:
        self.attention = eager.attention
        self.replayed = 0
        self._eager = eager
        self._backend = backend
        self._buffers = {each.size: each for each in buffers}
        self._sizes = sorted(self._buffers)
        self._replays: dict[int, Compute] = {}

    @torch.inference_mode()
    def record(self, capture: Capture) -> None:
        """Captures every bucket, the largest first: smaller ones then find their memory in the pool.

        Raises:
            ConfigError: the model's forward pass cannot be captured.
        """
        for size in reversed(self._sizes):
            try:
                self._replays[size] = capture(self._forward_of(self._buffers[size]))
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise ConfigError(
                    f"cuda_graphs: steps of {size} requests cannot be captured ({reason}); turn cuda_graphs off"
                ) from error

    def forward(self, packed: PackedStep) -> torch.Tensor:
        """Logits as of `Runner.forward`."""
        num_requests = len(packed.attention.query_lens)
        size = choose_bucket(self._sizes, num_requests)
        if size is None or packed.attention.num_decodes < num_requests:
            return self._eager.forward(packed)
        self._buffers[size].fill(packed)
        self.replayed += 1
        # A copy: the next replay overwrites what this one returned.
        return self._replays[size]().index_select(0, packed.logit_rows)

    def _forward_of(self, buffers: DecodeBuffers) -> Compute:
        def compute() -> torch.Tensor:
            step = self._backend.begin_on(buffers.batch, buffers.slot_mapping)
            return self._eager.compute(step, buffers.input_ids, buffers.position_ids, buffers.logit_rows)

        return compute


def with_graphs(
    eager: Runner, backend: CapturableBackend, kv: PagedKv, max_model_len: int, max_num_seqs: int
) -> GraphRunner:
    """A runner whose decode steps are CUDA graphs; the KV's last block must be nobody's.

    Raises:
        ConfigError: the model's forward pass cannot be captured.
    """
    shape = RowShape(kv.block_size, -(-max_model_len // kv.block_size), kv.num_blocks - SPARE_BLOCKS)
    buffers = [DecodeBuffers(size, shape, max_model_len, kv.device) for size in bucket_sizes(max_num_seqs)]
    runner = GraphRunner(eager, buffers, backend)
    runner.record(CudaGraphs(kv.device).capture)
    return runner
