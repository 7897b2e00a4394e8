"""A model's forward pass as a step needs it: tokens and positions in, logits at some of them out.

What `transformers` does around the layers for other uses (masks, records of what was computed, dictionaries of results)
takes a millisecond of a step. Where the layers are one module and what is around them proves to be plain, a pass calls
the parts alone.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from services.engine.attention.hook import StepSlot
from services.engine.native.fusing import EchoStep
from services.engine.native.layer_stack import LayerStack

# ids [1, T], positions [1, T] and rows [R] among them to logits [R, vocab_size]; the slot has the step.
Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_TOKENS = 7


class WholeForward:
    """Through the model's own forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """See `Forward`."""
        return self._model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=rows).logits[0]


class DirectForward:
    """Through the parts: embedding, angles, layers, norm and head; only wanted rows are normed.

    Raises:
        AttributeError: the model has other parts.
        TypeError, ValueError: its layers are not one module.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        inner = cast(Any, model).model
        self._embed, self._angles, self._norm = inner.embed_tokens, inner.rotary_emb, inner.norm
        self._head = cast(nn.Module, model.lm_head)
        (self._layers,) = inner.layers
        if not isinstance(self._layers, LayerStack):
            raise TypeError("the layers are not one module")

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """See `Forward`."""
        hidden = self._embed(ids)
        hidden = self._layers(hidden, position_embeddings=self._angles(hidden, positions))
        return self._head(self._norm(hidden[0].index_select(0, rows)))


def choose_forward(model: PreTrainedModel, slot: StepSlot) -> Forward:
    """The shorter pass where it gives the same bits for random tokens, else the model's own; any loaded model."""
    whole = WholeForward(model)
    try:
        direct = DirectForward(model)
        return direct if torch.equal(_some_logits(direct, model, slot), _some_logits(whole, model, slot)) else whole
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return whole


@torch.inference_mode()
def _some_logits(forward: Forward, model: PreTrainedModel, slot: StepSlot) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, _TOKENS), generator=generator)
    positions = torch.randint(64, (1, _TOKENS), generator=generator)
    with slot.running(EchoStep()):
        return forward(
            ids.to(model.device), positions.to(model.device), torch.tensor([2, _TOKENS - 1]).to(model.device)
        )
