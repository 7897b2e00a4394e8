"""Cuts rows of probabilities down to the tokens that may be drawn: top_k, then top_p, then min_p.

Each filter keeps the smallest set that its rule allows; of equally likely tokens at the border, those with the lowest
ids stay. So a set depends on values and ids alone, never on the order in which a sort leaves ties. The order of the
filters is that of transformers' logits processors.
"""

from collections.abc import Sequence

import torch

from services.common.sampling import SamplingParams

FIRST_LOOK = 1024


def filter_rows(probs: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    """Zeroes, in place, what each row's parameters leave out of float64 probabilities [W, vocab_size]."""
    vocab_size = probs.shape[1]
    limited = [row for row, one in enumerate(params) if 0 < one.top_k < vocab_size]
    nucleus = [row for row, one in enumerate(params) if one.top_p < 1 and not 0 < one.top_k < vocab_size]
    if limited:
        _keep_most_likely(probs, limited, params, max(params[row].top_k for row in limited))
    if nucleus:
        _keep_most_likely(probs, nucleus, params, min(FIRST_LOOK, vocab_size))
    floors = [row for row, one in enumerate(params) if one.min_p > 0]
    if floors:
        some = probs[floors]
        least = some.amax(-1, keepdim=True) * _column([params[row].min_p for row in floors], probs)
        probs[floors] = some.masked_fill_(some < least, 0.0)


def _keep_most_likely(probs: torch.Tensor, rows: list[int], params: Sequence[SamplingParams], width: int) -> None:
    """top_k and top_p of some rows, looking at their `width` largest probabilities first."""
    some = probs[rows]
    largest = some.topk(width, sorted=True).values
    top_p = _column([params[row].top_p for row in rows], probs)
    top_k = _column([params[row].top_k or probs.shape[1] for row in rows], probs)
    is_short = ((largest.sum(-1) < top_p[:, 0] * some.sum(-1)) & (top_k[:, 0] > width)).tolist()
    if any(is_short) and width < probs.shape[1]:
        _keep_most_likely(
            probs, [row for row, short in zip(rows, is_short, strict=True) if short], params, probs.shape[1]
        )
        kept = [index for index, short in enumerate(is_short) if not short]
        if not kept:
            return
        rows = [rows[index] for index in kept]
        some, largest, top_p, top_k = some[kept], largest[kept], top_p[kept], top_k[kept]
    probs[rows] = _cut(some, largest, top_k, top_p)


def _cut(probs: torch.Tensor, largest: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keeps as many of the largest probabilities as top_k and top_p allow; [W, 1] each."""
    width = largest.shape[1]
    ranks = torch.arange(width, device=probs.device)
    eligible = largest.masked_fill(ranks >= top_k, 0.0)
    # Without top_k the mass is that of all tokens, not only of those looked at.
    mass = torch.where(top_k > width, probs.sum(-1, keepdim=True), eligible.sum(-1, keepdim=True))
    reached = eligible.cumsum(-1) >= top_p * mass
    sizes = torch.where(reached.any(-1), reached.to(torch.int8).argmax(-1) + 1, width)[:, None]
    sizes = torch.minimum(sizes, top_k.long())
    border = largest.gather(-1, sizes - 1)
    spare = sizes - (largest > border).sum(-1, keepdim=True)
    ties = probs == border
    crowded = (ties.sum(-1) > spare[:, 0]).nonzero()[:, 0]
    if len(crowded):
        ties[crowded] &= ties[crowded].cumsum(-1, dtype=torch.int32) <= spare[crowded]
    return probs.masked_fill_(~(ties | (probs > border)), 0.0)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
