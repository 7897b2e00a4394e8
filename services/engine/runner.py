"""Runs one packed step through the model: tokens in, logits at the wanted positions out.

Knows neither requests nor sampling. Thread: one, the engine's.
"""

import torch
from transformers import PreTrainedModel

from services.engine.attention.hook import StepSlot
from services.engine.attention.interface import AttentionBackend
from services.engine.packing import PackedStep


class Runner:
    """A model joined to an attention backend."""

    def __init__(self, model: PreTrainedModel, slot: StepSlot, attention: AttentionBackend) -> None:
        self._model = model
        self._slot = slot
        self._attention = attention

    def forward(self, packed: PackedStep) -> torch.Tensor:
        """Logits [R, vocab_size] in the model's dtype, one row for each of `packed.logit_rows`."""
        with self._slot.running(self._attention.begin(packed.attention)):
            output = self._model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                use_cache=False,
                logits_to_keep=packed.logit_rows,
            )
        return output.logits[0]
