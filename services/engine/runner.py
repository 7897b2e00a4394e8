"""Runs one packed step through the model: tokens in, logits at the wanted positions out.

Knows neither requests nor sampling. Thread: one, the engine's.
"""

import torch

from services.engine.attention.hook import StepSlot
from services.engine.attention.interface import AttentionBackend, AttentionStep
from services.engine.forward import Forward
from services.engine.packing import PackedStep


class Runner:
    """A model joined to an attention backend, whose name is `attention`."""

    def __init__(self, forward: Forward, slot: StepSlot, backend: AttentionBackend) -> None:
        self.attention = backend.name
        self._forward = forward
        self._slot = slot
        self._backend = backend

    def forward(self, packed: PackedStep) -> torch.Tensor:
        """Logits [R, vocab_size] in the model's dtype, one row for each of `packed.logit_rows`."""
        step = self._backend.begin(packed.attention)
        return self.compute(step, packed.input_ids, packed.position_ids, packed.logit_rows)

    def compute(
        self, step: AttentionStep, input_ids: torch.Tensor, position_ids: torch.Tensor, logit_rows: torch.Tensor
    ) -> torch.Tensor:
        """Logits of a step whose attention is prepared; ids and positions are [1, T], `logit_rows` [R]."""
        with self._slot.running(step):
            return self._forward(input_ids, position_ids, logit_rows)
