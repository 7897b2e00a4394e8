"""Turns logits into tokens, item by item independent of batch mates.

Greedy items take the most likely token. Others draw by inverting the cumulative distribution in vocabulary order, with
one random number keyed by (seed, choice, index): vocabulary order does not flip where rounding swaps two nearly equal
probabilities, and the key makes any worker draw the same number. An item whose logits are no numbers fails alone.

Source of the generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), Philox 4x64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from services.common.errors import Internal
from services.common.types import Token
from services.engine.batch import ItemResult, SampleSpec
from services.engine.filters import filter_rows
from services.engine.logprobs import Logprobs, read_logprobs
from services.engine.penalties import adjust_row, needs_adjusting

# The largest element of each row [R, D] and where it first is, no number for a row with something that is none.
Largest = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(slots=True)
class _Draw:
    """One sample wanted from one row of logits."""

    row: int
    spec: SampleSpec
    token_id: int | None = None
    logprobs: Logprobs | None = None

    def token(self) -> Token:
        """The token drawn."""
        if self.token_id is None:
            raise AssertionError("no token was drawn")
        if self.logprobs is None:
            return Token(self.token_id, self.spec.index)
        return Token(self.token_id, self.spec.index, self.logprobs.chosen, self.logprobs.top)


def find_largest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Largest`; torch's way, on any device."""
    largest, places = rows.max(-1)
    return largest, places


def sample_rows(
    logits: torch.Tensor, samples: Sequence[Sequence[SampleSpec]], find: Largest = find_largest
) -> list[ItemResult]:
    """One result per row.

    Args:
        logits: [R, vocab_size], R at least as many as `samples`; rows behind them are ignored.
        samples: What is wanted from each row.
        find: Finds the largest logits.
    """
    if not samples:
        return []
    largest, best = find(logits[: len(samples)])
    is_sane, best_ids = [math.isfinite(one) for one in largest.tolist()], best.tolist()
    plain = {row for row, specs in enumerate(samples) if is_sane[row] and all(map(_is_plain, specs))}
    draws = {
        row: [_Draw(row, spec) for spec in specs if is_sane[row]]
        for row, specs in enumerate(samples)
        if row not in plain
    }
    _draw_others(logits, [draw for of_row in draws.values() for draw in of_row])
    return [
        ItemResult(tokens=tuple(Token(best_ids[row], spec.index) for spec in specs))
        if row in plain
        else _result(draws[row])
        for row, specs in enumerate(samples)
    ]


def uniform(seed: int, choice: int, index: int) -> float:
    """The random number in [0, 1) of one token: 53 bits of the first word of its Philox block."""
    # Explicit dtypes: numpy takes a list of large and small integers through float64 and loses the low bits.
    key = np.array([seed, choice], dtype=np.uint64)
    counter = np.array([index, 0, 0, 0], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def _is_plain(spec: SampleSpec) -> bool:
    """True where the row's largest logit is the whole answer."""
    sampling = spec.sampling
    return sampling.is_greedy and sampling.logprobs is None and not needs_adjusting(spec)


def _draw_others(logits: torch.Tensor, draws: Sequence[_Draw]) -> None:
    """Draws that need more than the row's largest logit."""
    if not draws:
        return
    scores = logits[[draw.row for draw in draws]].float()
    wanted = [index for index, draw in enumerate(draws) if draw.spec.sampling.logprobs is not None]
    raw = scores[wanted].clone() if wanted else None
    for row, draw in enumerate(draws):
        if needs_adjusting(draw.spec):
            adjust_row(scores[row], draw.spec)
    scores.clamp_(max=torch.finfo(scores.dtype).max)  # a penalty may lift a logit out of range
    for index, token_id in enumerate(scores.argmax(-1).tolist()):
        draws[index].token_id = token_id if bool(scores[index, token_id] > float("-inf")) else None
    _draw_random(scores, draws)
    if raw is not None:
        _attach_logprobs(raw, [draws[index] for index in wanted])


def _draw_random(scores: torch.Tensor, draws: Sequence[_Draw]) -> None:
    """Replaces the most likely token by a random one where temperature is above 0."""
    rows = [row for row, draw in enumerate(draws) if not draw.spec.sampling.is_greedy and draw.token_id is not None]
    for row in [row for row in rows if draws[row].spec.sampling.seed is None]:
        draws[row].token_id = None
        rows.remove(row)
    if not rows:
        return
    params = [draws[row].spec.sampling for row in rows]
    probs = temper(scores[rows], [one.temperature for one in params])
    filter_rows(probs, params)
    numbers = [
        uniform(one.seed or 0, draws[row].spec.choice, draws[row].spec.index)
        for row, one in zip(rows, params, strict=True)
    ]
    for row, token_id in zip(rows, invert(probs, numbers), strict=True):
        draws[row].token_id = token_id


def temper(scores: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """float64 probabilities [W, vocab_size] of scores at these temperatures, each above 0."""
    wide = scores.double()
    wide -= wide.amax(-1, keepdim=True)  # before the division, which would overflow at tiny temperatures
    wide /= torch.tensor(temperatures, dtype=torch.float64, device=scores.device)[:, None]
    return wide.softmax(-1)


def invert(probs: torch.Tensor, numbers: Sequence[float]) -> list[int]:
    """For each row, the first id at which the cumulative probability passes number · total."""
    cumulative = probs.cumsum(-1)
    totals = cumulative[:, -1:].contiguous()
    targets = torch.tensor(numbers, dtype=torch.float64, device=probs.device)[:, None] * totals
    ids = torch.searchsorted(cumulative, targets, right=True)
    # Rounding may lift a target onto the total; then it is the token at which the total is reached.
    last = torch.searchsorted(cumulative, totals)
    return torch.minimum(ids, last)[:, 0].tolist()


def _attach_logprobs(raw: torch.Tensor, draws: Sequence[_Draw]) -> None:
    chosen = [draw.token_id or 0 for draw in draws]
    counts = [draw.spec.sampling.logprobs or 0 for draw in draws]
    for draw, found in zip(draws, read_logprobs(raw, chosen, counts), strict=True):
        draw.logprobs = found


def _result(draws: Sequence[_Draw]) -> ItemResult:
    """A row without draws had logits that are no numbers; a draw without a token had none left to choose."""
    if not draws:
        return ItemResult(
            error=Internal("the model gave no finite logits for this request; its KV or weights are damaged")
        )
    for draw in draws:
        if draw.token_id is None:
            return ItemResult(error=Internal(_why_none(draw.spec)))
    return ItemResult(tokens=tuple(draw.token() for draw in draws))


def _why_none(spec: SampleSpec) -> str:
    if spec.sampling.seed is None and not spec.sampling.is_greedy:
        return "a request with temperature above 0 reached the sampler without a seed; the frontend draws one"
    return "every token was masked for this request; lower min_tokens or allow more tokens"
