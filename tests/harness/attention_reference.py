"""Attention as the formula says, one query at a time in float64; what every backend is compared with."""

from collections.abc import Sequence

import torch

from services.engine.attention.interface import LayerOptions


def attend_reference(
    query: torch.Tensor,
    query_lens: Sequence[int],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    options: LayerOptions,
) -> torch.Tensor:
    """Packed queries [num_heads, T, D] against whole sequences; result [T, num_heads, D] float64.

    `keys` and `values` hold [num_kv_heads, S, D] for each request; its queries are the last of its S positions.
    """
    rows: list[torch.Tensor] = []
    for count, key, value in zip(query_lens, keys, values, strict=True):
        for position in range(key.shape[1] - count, key.shape[1]):
            begin = max(0, position + 1 - options.sliding_window) if options.sliding_window else 0
            seen = slice(begin, position + 1)
            rows.append(_one(query[:, len(rows)], key[:, seen], value[:, seen], options))
    return torch.stack(rows)


def _one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions) -> torch.Tensor:
    groups = query.shape[0] // key.shape[0]
    key, value = (part.double().repeat_interleave(groups, 0) for part in (key, value))
    scores = torch.einsum("hd,hsd->hs", query.double(), key) * options.scale
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    return torch.einsum("hs,hsd->hd", scores.softmax(-1), value)
