"""Reads log-probabilities out of raw logits: the model's own distribution, before penalties and temperature."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probability of the chosen token, and (id, log-probability) of the most likely ones, best first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


def read_logprobs(logits: torch.Tensor, chosen: Sequence[int], counts: Sequence[int]) -> list[Logprobs]:
    """Natural logarithms for each row of float32 logits [W, vocab_size].

    Args:
        logits: Raw logits.
        chosen: The token of each row.
        counts: How many of the most likely tokens each row wants; 0 wants none.
    """
    totals = logits.logsumexp(-1, keepdim=True)
    ids = torch.tensor(chosen, device=logits.device)[:, None]
    of_chosen = (logits.gather(-1, ids) - totals)[:, 0].tolist()
    width = min(max(counts), logits.shape[1])
    values, best = logits.topk(width)
    rows = zip(of_chosen, (values - totals).tolist(), best.tolist(), counts, strict=True)
    return [Logprobs(own, _ranked(values_row, ids_row)[:count]) for own, values_row, ids_row, count in rows]


def _ranked(values: list[float], ids: list[int]) -> tuple[tuple[int, float], ...]:
    """Pairs by value, equal ones by id, for topk leaves ties in any order."""
    return tuple((token, value) for value, token in sorted(zip(values, ids, strict=True), key=lambda p: (-p[0], p[1])))
