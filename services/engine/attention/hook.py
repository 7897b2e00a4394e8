"""Joins `transformers` models to an attention backend through their attention interface.

The attention function gets the module that calls it. Each attention module of a model holds that model's `StepSlot`,
where the runner puts the step before a forward pass: not every family passes further arguments down to its attention,
and engines in one process stay apart. No mask function is registered: then `transformers` makes no mask.
"""

import contextlib
from collections.abc import Generator
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from services.engine.attention.interface import LayerOptions

IMPLEMENTATION = "baton"


class UnsupportedAttention(Exception):
    """A model's attention needs something that no backend computes."""


class LayerStep(Protocol):
    """What the attention function calls: a step of a backend, or the probe that learns a model's layers."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """See `AttentionStep.attend`."""
        ...


class StepSlot:
    """Where the attention modules of one model find the step that is running. Thread: one, the engine's."""

    def __init__(self) -> None:
        self._step: LayerStep | None = None

    @property
    def step(self) -> LayerStep:
        """The running step.

        Raises:
            UnsupportedAttention: none is running.
        """
        if self._step is None:
            raise UnsupportedAttention("it attends outside of a step")
        return self._step

    @contextlib.contextmanager
    def running(self, step: LayerStep) -> Generator[None]:
        """Holds the step for the length of one forward pass."""
        self._step = step
        try:
            yield
        finally:
            self._step = None


def register_attention() -> None:
    """Makes `IMPLEMENTATION` known to `transformers`; may be called again."""
    AttentionInterface.register(IMPLEMENTATION, _attention)


def attach_slot(model: torch.nn.Module) -> StepSlot:
    """Gives every module that may attend (it knows its layer) the model's slot."""
    slot = StepSlot()
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.step_slot = slot  # pyright: ignore[reportArgumentType] - modules hold any attribute
    return slot


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What `transformers` calls per layer; query [1, num_heads, T, head_dim], result [1, T, num_heads, head_dim]."""
    slot = getattr(module, "step_slot", None)
    if not isinstance(slot, StepSlot):
        raise UnsupportedAttention("its attention modules do not know which layer they are")
    strange = sorted(name for name, given in others.items() if isinstance(given, torch.Tensor) and name not in _KNOWN)
    if attention_mask is not None or strange:
        what = ", ".join(["a mask"] * (attention_mask is not None) + strange)
        raise UnsupportedAttention(f"its attention depends on {what}, which paged attention does not compute")
    options = LayerOptions(
        layer_idx=module.layer_idx,  # pyright: ignore[reportArgumentType] - those with a slot have one
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        sliding_window=sliding_window,
        softcap=softcap,
    )
    return slot.step.attend(query[0], key[0], value[0], options)[None], None


# Tensors that models pass along and that say nothing new: positions are in the rotated queries already.
_KNOWN = frozenset({"position_ids", "cache_position"})
