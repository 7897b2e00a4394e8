"""Learns a loaded model's attention layers by running two tokens through it.

What a checkpoint's configuration says about heads and windows differs from family to family; what reaches the attention
function does not. So shapes, scales and windows are read there, and a model whose attention cannot be paged is refused
with the reason. Knows nothing of weights or KV memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from services.common.config import ConfigError
from services.engine.attention.hook import StepSlot, UnsupportedAttention
from services.engine.attention.interface import LayerOptions


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the engine must know of a model: its KV shape, its windows, and the width of its logits."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    layers: tuple[LayerOptions, ...]


class _Recorder:
    """Stands where a step of a backend would, and notes what each layer hands over."""

    def __init__(self) -> None:
        self.calls: list[tuple[LayerOptions, tuple[int, int, int, int]]] = []

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """Notes the shapes and returns zeros of the right shape."""
        if value.shape != key.shape or query.shape[-1] != key.shape[-1]:
            raise UnsupportedAttention(
                f"its keys {tuple(key.shape)} and values {tuple(value.shape)} differ in shape, as in latent attention"
            )
        self.calls.append((options, (query.shape[0], key.shape[0], key.shape[1], key.shape[2])))
        return query.new_zeros(query.shape[1], query.shape[0], query.shape[2])


def probe_model(model: PreTrainedModel, slot: StepSlot, device: torch.device) -> ModelShape:
    """Runs two tokens through the model.

    Raises:
        ConfigError: the model's attention cannot be paged.
    """
    name, recorder = type(model).__name__, _Recorder()
    try:
        with torch.inference_mode(), slot.running(recorder):
            logits = _two_tokens(model, device)
    except UnsupportedAttention as error:
        raise ConfigError(f"{name} is not supported: {error}; use another model") from error
    except (TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{name} does not run two tokens ({error}); its config.json does not fit") from error
    if logits.shape[0] != 1:
        raise ConfigError(f"{name} is not supported: it computes logits at every position; use another model")
    _check_calls(name, recorder.calls)
    _check_windows(name, model.config.get_text_config(), [options for options, _ in recorder.calls])
    _, (num_heads, num_kv_heads, _, head_dim) = recorder.calls[0]
    layers = tuple(options for options, _ in recorder.calls)
    return ModelShape(len(layers), num_heads, num_kv_heads, head_dim, logits.shape[-1], layers)


def _two_tokens(model: PreTrainedModel, device: torch.device) -> torch.Tensor:
    """Logits [R, vocab_size] of token 0 fed twice; R is 1 where the model heeds which positions are wanted."""
    positions = torch.arange(2, device=device)
    output = model(
        input_ids=torch.zeros_like(positions)[None],
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=positions[-1:],
    )
    return output.logits[0]


def _check_calls(name: str, calls: Sequence[tuple[LayerOptions, tuple[int, int, int, int]]]) -> None:
    if [options.layer_idx for options, _ in calls] != list(range(len(calls))) or not calls:
        order = [options.layer_idx for options, _ in calls]
        raise ConfigError(
            f"{name} is not supported: its attention layers are {order}, but one call per layer in order is needed "
            "(hybrid models mix in layers without KV); use another model"
        )
    shapes = {shape for _, shape in calls}
    if len(shapes) > 1:
        raise ConfigError(
            f"{name} is not supported: its layers differ in (heads, kv heads, tokens, head_dim): {sorted(shapes)}, "
            "but all layers share one KV tensor; use another model"
        )
    if calls[0][1][2] != 2:
        raise ConfigError(f"{name} is not supported: a layer saw {calls[0][1][2]} tokens where 2 were fed")


def _check_windows(name: str, config: Any, layers: Sequence[LayerOptions]) -> None:
    """A layer that the configuration calls sliding must have handed its window over, and no other."""
    layer_types: Sequence[str] | None = getattr(config, "layer_types", None)
    if layer_types is None:
        return
    for options, kind in zip(layers, layer_types, strict=False):
        if (kind == "sliding_attention") != (options.sliding_window is not None):
            raise ConfigError(
                f"{name} is not supported: layer {options.layer_idx} is {kind} but hands over the window "
                f"{options.sliding_window}; use another model"
            )
