"""Says from a checkpoint's configuration alone whether the engine can serve it, before any weight is loaded.

What a configuration does not show, the probe finds out once the model is loaded.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from services.common.config import ConfigError

_PAGED_LAYERS = frozenset({"full_attention", "sliding_attention"})
# Rotary embeddings whose frequencies depend on the longest request of a batch once it passes the original length.
_LENGTH_DEPENDENT_ROPES = frozenset({"dynamic", "longrope"})


def read_config(checkpoint: Path) -> PreTrainedConfig:
    """Reads a checkpoint's configuration.

    Raises:
        ConfigError: it is unreadable, of an unknown family, or needs code of its own.
    """
    try:
        return AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model {checkpoint}: transformers does not read its config.json ({error}); "
            "use a checkpoint of a family that transformers knows, in Hugging Face format"
        ) from error


def check_support(config: PreTrainedConfig, checkpoint: Path) -> None:
    """Refuses what cannot be served.

    Raises:
        ConfigError: names the reason.
    """
    reason = _refusal(config, config.get_text_config())
    if reason is not None:
        raise ConfigError(f"model {checkpoint}: {reason}; use a decoder-only transformer with one kind of KV")
    if not any(checkpoint.glob("*.safetensors")):
        raise ConfigError(f"model {checkpoint}: holds no .safetensors file; convert its weights to safetensors")


def longest_context(config: PreTrainedConfig, max_position: int, wanted: int) -> int:
    """The context length to serve: what is wanted, else what the checkpoint allows.

    Raises:
        ConfigError: more is wanted than the checkpoint can do, or than it can do equally for every batch mate.
    """
    limit, reason = max_position, "the checkpoint's positions end there"
    for rope in _ropes(config.get_text_config()):
        original = int(rope.get("original_max_position_embeddings") or max_position)
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPES and original < limit:
            limit, reason = original, f"beyond it {rope['rope_type']} positions depend on the other requests in a batch"
    if wanted > limit:
        raise ConfigError(f"max_model_len is {wanted}, the most is {limit}: {reason}; lower max_model_len")
    return wanted or limit


def _ropes(text: Any) -> list[dict[str, Any]]:
    """Rotary settings: one for the model, or one for each kind of layer."""
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [inner for inner in rope.values() if isinstance(inner, dict)]


def _refusal(config: PreTrainedConfig, text: Any) -> str | None:
    """Why this configuration cannot be served, or None."""
    layer_types = set(getattr(text, "layer_types", None) or ())
    if getattr(config, "is_encoder_decoder", False):
        return f"{config.model_type} is an encoder-decoder; only decoder-only models run here"
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"{config.model_type} is no causal language model of transformers"
    if getattr(text, "kv_lora_rank", None):
        return f"{config.model_type} uses latent attention (MLA), whose KV is not paged here"
    if layer_types - _PAGED_LAYERS:
        return (
            f"its layers {', '.join(sorted(layer_types - _PAGED_LAYERS))} keep no paged KV (hybrid or linear attention)"
        )
    if any(
        getattr(text, name, None) is not None
        for name in ("state_size", "mamba_d_state", "ssm_cfg", "attn_layer_period")
    ):
        return f"{config.model_type} has state-space layers (Mamba), which keep no paged KV"
    if getattr(text, "use_bidirectional_attention", False):
        return f"{config.model_type} attends in both directions"
    return None
