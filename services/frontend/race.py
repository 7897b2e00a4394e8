"""What is known of one request over all its routes. Knows nothing of how workers are called."""

import dataclasses
import secrets
from dataclasses import dataclass

from services.common.sampling import SamplingParams
from services.common.types import WorkRequest
from services.frontend.merge import TokenMerge
from services.frontend.output_text import OutputText
from services.frontend.recovery import Recovery
from services.frontend.router import Route
from services.frontend.routing.need import Need
from services.frontend.routing.prefix import Prefix
from services.frontend.stage_record import StageRecord


@dataclass(slots=True)
class Race:
    """One request; `most_tokens` is how long prompt and output may get, 0 until that is settled.

    `model` is the fingerprint of its latest route's weights; `is_hedged` is True once two routes ran at a time, and
    `cached_tokens` is what the first run of the prompt had in its cache.
    """

    work: WorkRequest
    record: StageRecord
    text: OutputText
    merge: TokenMerge
    recovery: Recovery
    session_id: str = ""
    most_tokens: int = 0
    model: str = ""
    is_hedged: bool = False
    cached_tokens: int | None = None

    def settle(self, route: Route) -> None:
        """Takes a route; the first one settles what the client left open: seed and output length."""
        runner = route.prefill or route.decode
        self.model = runner.worker.layout.model_fingerprint if runner is not None else ""
        if not self.most_tokens:
            prompt_tokens = len(self.work.token_ids)
            sampling = _settled(self.work.sampling, route.max_model_len - prompt_tokens)
            self.work = dataclasses.replace(self.work, sampling=sampling)
            self.merge.max_tokens = sampling.max_tokens
            self.most_tokens = prompt_tokens + (sampling.max_tokens or 0)

    def need(self) -> Need:
        """What the next route must give."""
        return Need(
            prompt_tokens=len(self.work.token_ids),
            is_first_token_last=self.work.sampling.max_tokens == 1,
            is_begun=self.merge.has_begun,
            most_tokens=self.most_tokens,
            avoided=frozenset(self.recovery.avoided),
            session_id=self.session_id,
            model=self.model if self.merge.has_begun else "",
            prefix=Prefix(self.work.token_ids, self.work.cache_salt),
        )

    def keep_cached(self, tokens: int) -> int:
        """Prompt tokens that came out of a cache when the prompt was run; of several values the first one counts."""
        if self.cached_tokens is None:
            self.cached_tokens = min(tokens, len(self.work.token_ids))
        return self.cached_tokens

    @property
    def emitted(self) -> dict[int, tuple[int, ...]]:
        """Output so far of the choices that go on; empty before the first token."""
        if not self.merge.has_begun:
            return {}
        return {choice: ids for choice, ids in self.merge.emitted.items() if choice in self.text.open_choices}

    @property
    def known_tokens(self) -> int:
        """Tokens that a worker must compute before it can give the next one."""
        return len(self.work.token_ids) + sum(map(len, self.emitted.values()))


def _settled(sampling: SamplingParams, room: int) -> SamplingParams:
    """The parameters with nothing left open; `room` is how many tokens the context leaves."""
    max_tokens = min(sampling.max_tokens or room, room)
    seed = sampling.seed
    if seed is None and not sampling.is_greedy:
        seed = secrets.randbits(63)
    min_tokens = min(sampling.min_tokens, max_tokens)
    return dataclasses.replace(sampling, max_tokens=max_tokens, min_tokens=min_tokens, seed=seed)
