"""How the next token is chosen: parameters and the rules they must keep.

Knows the ranges of the public contract (`types.proto`); the arithmetic is in `engine/sampler.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.errors import FieldViolation, InvalidRequest

MAX_CHOICES = 16
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of one request, defaults applied; `types.proto` says what each means and its range.

    `max_tokens` None means what the context length leaves; `seed` None means not drawn yet (only before the frontend's
    admission, or greedy); `logprobs` None means none are reported.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    n: int = 1
    logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        """True where the most likely token is taken and no random number is used."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """True where the logits depend on the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Checks every range of the contract.

    Raises:
        InvalidRequest: names every field that is out of range.
    """
    violations = [
        *_number_violations(params),
        *_count_violations(params),
        *_list_violations(params, vocab_size),
    ]
    if violations:
        raise InvalidRequest(violations)


def _number_violations(params: SamplingParams) -> list[FieldViolation]:
    rules: list[tuple[str, float, bool, str]] = [
        ("temperature", params.temperature, 0 <= params.temperature <= 100, "in [0, 100]"),
        ("top_p", params.top_p, 0 < params.top_p <= 1, "in (0, 1]"),
        ("min_p", params.min_p, 0 <= params.min_p <= 1, "in [0, 1]"),
        ("repetition_penalty", params.repetition_penalty, 0.01 <= params.repetition_penalty <= 100, "in [0.01, 100]"),
        ("presence_penalty", params.presence_penalty, -2 <= params.presence_penalty <= 2, "in [-2, 2]"),
        ("frequency_penalty", params.frequency_penalty, -2 <= params.frequency_penalty <= 2, "in [-2, 2]"),
    ]
    return [_violation(name, value, want) for name, value, is_valid, want in rules if not is_valid]


def _count_violations(params: SamplingParams) -> list[FieldViolation]:
    rules: list[tuple[str, int | None, bool, str]] = [
        ("top_k", params.top_k, params.top_k >= 0, "0 (off) or more"),
        ("max_tokens", params.max_tokens, params.max_tokens is None or params.max_tokens >= 1, "1 or more"),
        ("min_tokens", params.min_tokens, params.min_tokens >= 0, "0 or more"),
        ("n", params.n, 1 <= params.n <= MAX_CHOICES, f"in [1, {MAX_CHOICES}]"),
        (
            "logprobs",
            params.logprobs,
            params.logprobs is None or 0 <= params.logprobs <= MAX_LOGPROBS,
            f"in [0, {MAX_LOGPROBS}]",
        ),
    ]
    return [_violation(name, value, want) for name, value, is_valid, want in rules if not is_valid]


def _list_violations(params: SamplingParams, vocab_size: int) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    if len(params.stop) > MAX_STOP_STRINGS:
        found.append(_violation("stop", len(params.stop), f"at most {MAX_STOP_STRINGS} strings"))
    if any(not 1 <= len(text) <= MAX_STOP_STRING_CHARS for text in params.stop):
        found.append(_violation("stop", "a string", f"1 to {MAX_STOP_STRING_CHARS} characters long"))
    if len(params.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        found.append(_violation("stop_token_ids", len(params.stop_token_ids), f"at most {MAX_STOP_TOKEN_IDS} ids"))
    if any(token >= vocab_size for token in params.stop_token_ids):
        found.append(_violation("stop_token_ids", max(params.stop_token_ids), f"below {vocab_size}"))
    if len(params.logit_bias) > MAX_LOGIT_BIASES:
        found.append(_violation("logit_bias", len(params.logit_bias), f"at most {MAX_LOGIT_BIASES} entries"))
    if any(token >= vocab_size for token in params.logit_bias):
        found.append(_violation("logit_bias", max(params.logit_bias), f"below {vocab_size}"))
    if any(not (math.isfinite(bias) and -100 <= bias <= 100) for bias in params.logit_bias.values()):
        found.append(_violation("logit_bias", "a bias", "in [-100, 100]"))
    return found


def _violation(name: str, value: object, want: str) -> FieldViolation:
    return FieldViolation(f"sampling.{name}", f"is {value}, must be {want}")
