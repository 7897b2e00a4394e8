"""What one step computes, as plain data: the border between the schedulers and the runner.

A step packs the fed tokens of several items into one forward pass. Items of one token (decode) and of many (prefill
chunks) mix freely.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.sampling import SamplingParams
from services.common.types import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """How to choose one token from the logits of an item's last fed token.

    The random number is keyed by (seed, choice, index), so that any worker continues any stream identically.
    `prompt_ids` and `output_ids` are what penalties count; `is_stop_allowed` False masks `stop_ids` (min_tokens).
    """

    sampling: SamplingParams
    choice: int
    index: int
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    stop_ids: tuple[int, ...] = ()
    is_stop_allowed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """One request's share of a step.

    `token_ids` are fed at positions start, start+1, …; `block_ids` is its block table and covers at least
    start + len(token_ids) positions; positions below `start` are in KV already. `samples` is empty for a chunk that is
    not the prompt's last, has one entry in decode, and n entries for the last chunk of a prompt with n choices.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    samples: tuple[SampleSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What an item got: one token per sample, or the error that only this item suffered (NaN logits)."""

    tokens: tuple[Token, ...] = ()
    error: Exception | None = None
