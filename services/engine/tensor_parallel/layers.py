"""The layers of a divided model in which its ranks meet: sums behind layers cut by inputs, and the logits.

They find the group of ranks in a slot that all of one model's share, as attention finds its step. Until the group is
there a model computes its own part alone: the right shapes, no right values.
"""

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from services.common.config import ConfigError
from services.engine.tensor_parallel.group import RankGroup
from services.engine.tensor_parallel.plan import Cut, Shard, ShardPlan


class GroupSlot:
    """Where the layers of one model find the ranks that share it. Thread: one, the engine's."""

    def __init__(self) -> None:
        self.group: RankGroup | None = None


class SummedLinear(nn.Module):
    """A linear layer of which each rank has a part of the inputs; its output is the sum over all ranks."""

    def __init__(self, linear: nn.Module, slot: GroupSlot) -> None:
        super().__init__()
        self.linear = linear
        self._slot = slot

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., inputs of this rank] to [..., outputs], equal on all ranks."""
        part = self.linear(hidden)
        return part if self._slot.group is None else self._slot.group.all_reduce(part)


class GatheredLogits(nn.Module):
    """The output layer, of which each rank has a part of the vocabulary; rank 0 gets the logits of all of it."""

    def __init__(self, linear: nn.Linear, shard: Shard, slot: GroupSlot, *, is_tied: bool) -> None:
        super().__init__()
        self.vocab_size = linear.out_features
        self.linear = _rows_of(linear, shard.share(linear.out_features), is_copied=not is_tied)
        self._shares = [Shard(rank, shard.degree).share(self.vocab_size) for rank in range(shard.degree)]
        self._slot = slot

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size] to [..., vocab_size]; on ranks other than 0 the values mean nothing."""
        part: torch.Tensor = self.linear(hidden)
        if self._slot.group is None:
            return part.new_zeros(*part.shape[:-1], self.vocab_size)
        return self._slot.group.gather(part, [share.stop - share.start for share in self._shares])


def _rows_of(linear: nn.Linear, rows: slice, *, is_copied: bool) -> nn.Linear:
    """A linear layer with some of another's outputs: a copy, so that the other can go, or a view of its memory."""
    bias = cast("torch.Tensor | None", linear.bias)  # typed as always there, but it is not
    part = nn.Linear(linear.in_features, rows.stop - rows.start, bias=bias is not None, device="meta")
    weight = linear.weight.detach()[rows]
    part.weight = nn.Parameter(weight.clone() if is_copied else weight, requires_grad=False)
    if bias is not None:
        part.bias = nn.Parameter(bias.detach()[rows].clone(), requires_grad=False)
    return part


def join_layers(model: PreTrainedModel, plan: ShardPlan, shard: Shard) -> GroupSlot:
    """Puts the layers in which ranks meet into a rank's model, in place; gives the slot for their group.

    Raises:
        ConfigError: the model lacks layers that the plan names; without their sums its output would be wrong.
    """
    slot = GroupSlot()
    found = {name: module for name, module in model.named_modules() if plan.cut_of_module(name) is Cut.INPUTS}
    wanted = plan.num_sums * model.config.get_text_config().num_hidden_layers
    if len(found) != wanted:
        what = f"{type(model).__name__} has {len(found)} layers cut by inputs, its plan says {wanted}"
        raise ConfigError(f"tensor parallelism of {shard.degree} is not possible: {what}; use 1, or another model")
    for name, module in found.items():
        model.set_submodule(name, SummedLinear(module, slot))
    head = model.get_output_embeddings()
    if shard.degree > 1 and isinstance(head, nn.Linear):
        name = next(name for name, module in model.named_modules() if module is head)
        is_tied = head.weight is getattr(model.get_input_embeddings(), "weight", None)
        model.set_submodule(name, GatheredLogits(head, shard, slot, is_tied=is_tied))
    return slot
