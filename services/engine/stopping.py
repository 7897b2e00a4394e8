"""When a choice ends: the rules that need token ids alone. Stop strings are the frontend's.

Pure; used by the prefill tier for the first token and by the decode tier for all.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from services.common.sampling import SamplingParams
from services.common.types import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """The rule of one request. `max_tokens` is resolved: the context length is in it.

    `stop_ids` end a choice from output index `min_tokens` on; before it they are masked out of the logits.
    """

    max_tokens: int
    min_tokens: int
    stop_ids: tuple[int, ...]

    @classmethod
    def of(
        cls, sampling: SamplingParams, *, prompt_tokens: int, max_model_len: int, eos_token_ids: Iterable[int]
    ) -> "StopRule":
        """Resolves the parameters of a request against the model's limits."""
        room = max_model_len - prompt_tokens
        wanted = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        eos = () if sampling.ignore_eos else tuple(eos_token_ids)
        return cls(
            max_tokens=wanted,
            min_tokens=min(sampling.min_tokens, wanted),
            stop_ids=tuple(dict.fromkeys((*eos, *sampling.stop_token_ids))),
        )

    def is_stop_allowed(self, index: int) -> bool:
        """False while the token at output position `index` must not end the choice."""
        return index >= self.min_tokens

    def reason(self, token_id: int, index: int) -> FinishReason | None:
        """Why the choice ends with `token_id` at output position `index`; None where it goes on."""
        if token_id in self.stop_ids and self.is_stop_allowed(index):
            return FinishReason.STOP
        return FinishReason.LENGTH if index + 1 >= self.max_tokens else None
