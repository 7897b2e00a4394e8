"""A backend that reads nothing but the tensors of its batch, when it attends: what CUDA kernels do, on CPU."""

import torch

from services.engine.attention.device_batch import DeviceBatch, kernel_views, store
from services.engine.attention.interface import AttentionBatch, LayerOptions
from tests.harness.attention_reference import attend_reference


class TensorAttention:
    """A `CapturableBackend` over one KV tensor, by the formula."""

    name = "tensor"

    def __init__(self, kv: torch.Tensor) -> None:
        self.views = kernel_views(kv)

    def begin(self, batch: AttentionBatch) -> "TensorStep":
        return self.begin_on(DeviceBatch.of(batch), batch.slot_mapping)

    def begin_on(self, batch: DeviceBatch, slot_mapping: torch.Tensor) -> "TensorStep":
        return TensorStep(self, batch, slot_mapping)


class TensorStep:
    """One step."""

    def __init__(self, backend: TensorAttention, batch: DeviceBatch, slot_mapping: torch.Tensor) -> None:
        self._backend = backend
        self._batch = batch
        self._slot_mapping = slot_mapping

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        batch, views = self._batch, self._backend.views[options.layer_idx]
        store(views, self._slot_mapping, key, value)
        lengths = batch.cache_seqlens.tolist()
        assert batch.cu_seqlens_k.diff().tolist() == lengths
        assert max(lengths) <= batch.max_seqlen_k
        seen: list[list[torch.Tensor]] = [[], []]
        for row, length in zip(batch.block_table, lengths, strict=True):
            for side, plane in zip(seen, (views.keys, views.values), strict=True):
                side.append(plane[row.long()].flatten(0, 1)[:length].transpose(0, 1))
        found = attend_reference(query, batch.cu_seqlens_q.diff().tolist(), *seen, options)
        return found.to(query.dtype)
