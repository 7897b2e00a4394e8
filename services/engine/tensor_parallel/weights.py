"""Loads a rank's share of a checkpoint, and nothing else of it.

The rank's model is an ordinary model of the family with fewer heads and narrower layers; so its weights are slices of
the checkpoint's, read as such, and shapes that do not fit are refused by `transformers` itself.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from services.common.config import ConfigError
from services.engine.tensor_parallel.plan import Cut, Shard, ShardPlan, divided_sizes, plan_shards


def shard_config(config: PreTrainedConfig, shard: Shard) -> PreTrainedConfig:
    """The configuration of a rank's model: heads and widths divided, the width of a head as it was."""
    own = copy.deepcopy(config)
    text: Any = own.get_text_config()
    text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    for name, size in divided_sizes(text).items():
        if isinstance(size, int):
            setattr(text, name, size // shard.degree)
    return own


def plan_of(config: PreTrainedConfig, shard: Shard) -> ShardPlan:
    """The plan for a checkpoint; without cuts where there is one rank.

    Raises:
        ConfigError: it cannot be divided so.
    """
    if shard.degree == 1:
        return ShardPlan({})
    text: Any = config.get_text_config()
    return plan_shards(text.model_type, text.base_model_tp_plan, divided_sizes(text), shard.degree)


def read_shard(checkpoint: Path, plan: ShardPlan, shard: Shard) -> dict[str, torch.Tensor]:
    """A rank's part of every weight, by name, in the checkpoint's dtype.

    Raises:
        OSError: a file is unreadable.
        SafetensorError: a file is damaged.
    """
    found: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                found[name] = _part(file.get_slice(name), plan.cut_of(name), shard)
    return found


def _part(weight: Any, cut: Cut | None, shard: Shard) -> torch.Tensor:
    """One weight's part; a bias behind a sum belongs to rank 0 alone, or it would be added once for each rank."""
    shape: list[int] = weight.get_shape()
    if cut is None:
        return weight[:]
    if cut is Cut.OUTPUTS:
        return weight[shard.share(shape[0])]
    if len(shape) > 1:
        return weight[:, shard.share(shape[1])].contiguous()
    whole: torch.Tensor = weight[:]
    return whole if shard.rank == 0 else torch.zeros_like(whole)


def load_shard(checkpoint: Path, config: PreTrainedConfig, shard: Shard, dtype: torch.dtype) -> Any:
    """A rank's model and the loading info, as `from_pretrained` gives them with `output_loading_info`.

    Raises:
        ConfigError: the model cannot be divided so.
    """
    plan = plan_of(config, shard)
    own = shard_config(config, shard)
    weights = read_shard(checkpoint, plan, shard)
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(own)]
    try:
        return family.from_pretrained(None, config=own, state_dict=weights, dtype=dtype, output_loading_info=True)
    except RuntimeError as error:
        raise ConfigError(
            f"tensor parallelism of {shard.degree} is not possible: {own.model_type} does not become narrower by its "
            f"configuration, so that the parts of its weights do not fit ({error}); use 1, or another model"
        ) from error
