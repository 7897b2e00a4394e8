"""Which weights of a model are divided between ranks, and how. Pure: knows names and sizes, no tensors.

`transformers` says for each family which linear layers are divided by their outputs and which by their inputs. What
stands between such a pair each rank computes for its share alone; the outputs of the second are added up.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from services.common.config import ConfigError

_REPLICATED = frozenset({"replicated_with_grad_allreduce", "replicated"})
_DIVIDED_SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


class Cut(enum.Enum):
    """How a linear layer is divided: its outputs, or its inputs."""

    OUTPUTS = "colwise"
    INPUTS = "rowwise"


@dataclass(frozen=True, slots=True)
class Shard:
    """Which share of a model: that of `rank` among `degree` ranks; by default all of it."""

    rank: int = 0
    degree: int = 1

    def share(self, size: int) -> slice:
        """The rank's part of so many rows; parts differ by one row at most where it does not divide."""
        return slice(size * self.rank // self.degree, size * (self.rank + 1) // self.degree)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """How a model is divided: cuts by module name, in which `*` stands for a layer's number."""

    cuts: Mapping[str, Cut]

    @property
    def num_sums(self) -> int:
        """Layers cut by inputs in each layer of the model."""
        return sum(cut is Cut.INPUTS for cut in self.cuts.values())

    def cut_of(self, parameter: str) -> Cut | None:
        """How the layer of a parameter such as `model.layers.0.mlp.up_proj.weight` is cut; None: every rank has it."""
        return self.cut_of_module(parameter.rpartition(".")[0])

    def cut_of_module(self, name: str) -> Cut | None:
        """As `cut_of`, for a module's own name."""
        general = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        return next((cut for known, cut in self.cuts.items() if f".{general}".endswith(f".{known}")), None)


def plan_shards(family: str, styles: Mapping[str, str] | None, sizes: Mapping[str, object], degree: int) -> ShardPlan:
    """How to divide a model between `degree` ranks.

    Args:
        family: Its name, for messages.
        styles: The family's own plan, `base_model_tp_plan` of transformers.
        sizes: Of its configuration: `num_attention_heads`, `num_key_value_heads` and `intermediate_size`.
        degree: At least 2.

    Raises:
        ConfigError: it cannot be divided so; says why.
    """
    if not styles:
        raise _refusal(degree, f"transformers has no plan for dividing {family}")
    strange = sorted({style for style in styles.values() if style not in _REPLICATED and style not in _CUTS})
    if strange:
        raise _refusal(degree, f"{family} has layers that are divided as {', '.join(strange)}, which is not built")
    for name, size in sizes.items():
        if not isinstance(size, int):
            raise _refusal(degree, f"the configuration of {family} has no {name}")
        if size % degree:
            raise _refusal(degree, f"its {name} {size} cannot be divided by {degree}")
    return ShardPlan({name: Cut(style) for name, style in styles.items() if style not in _REPLICATED})


def divided_sizes(config: object) -> dict[str, object]:
    """The sizes of a text configuration that are divided; None where it lacks one."""
    return {name: getattr(config, name, None) for name in _DIVIDED_SIZES}


def _refusal(degree: int, reason: str) -> ConfigError:
    return ConfigError(f"tensor parallelism of {degree} is not possible: {reason}; use 1, or another model")


_CUTS = frozenset(cut.value for cut in Cut)
