"""The layers of a divided model in which its ranks meet: sums behind layers cut by inputs, and the logits.

They find the group of ranks in a slot that all of one model's share, as attention finds its step. Until the group is
there a model computes its own part alone: the right shapes, no right values.
"""

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

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

    def __init__(self, linear: nn.Linear, shard: Shard, slot: GroupSlot) -> None:
        super().__init__()
        self.vocab_size = linear.out_features
        self.linear = _rows_of(linear, shard.share(linear.out_features))
        self._shares = [Shard(rank, shard.degree).share(self.vocab_size) for rank in range(shard.degree)]
        self._slot = slot

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size] to [..., vocab_size]; on ranks other than 0 the values mean nothing."""
        part: torch.Tensor = self.linear(hidden)
        if self._slot.group is None:
            return part.new_zeros(*part.shape[:-1], self.vocab_size)
        return self._slot.group.gather(part, [share.stop - share.start for share in self._shares])


def _rows_of(linear: nn.Linear, rows: slice) -> nn.Linear:
    """A linear layer with some of another's outputs; it shares their memory, which may be that of the embedding."""
    bias = cast("torch.Tensor | None", linear.bias)  # typed as always there, but it is not
    part = nn.Linear(linear.in_features, rows.stop - rows.start, bias=bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight.detach()[rows], requires_grad=False)
    if bias is not None:
        part.bias = nn.Parameter(bias.detach()[rows], requires_grad=False)
    return part


def join_layers(model: PreTrainedModel, plan: ShardPlan, shard: Shard) -> GroupSlot:
    """Puts the layers in which ranks meet into a rank's model, in place; gives the slot for their group."""
    slot = GroupSlot()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and plan.cut_of_module(name) is Cut.INPUTS:
            model.set_submodule(name, SummedLinear(module, slot))
    head = model.get_output_embeddings()
    if shard.degree > 1 and isinstance(head, nn.Linear):
        name = next(name for name, module in model.named_modules() if module is head)
        model.set_submodule(name, GatheredLogits(head, shard, slot))
    return slot
