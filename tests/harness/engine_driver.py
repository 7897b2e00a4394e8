"""Runs requests to completion over `Engine.step` with block tables of its own; a scheduler for tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.common.sampling import SamplingParams
from services.common.types import Token
from services.engine.batch import BatchItem, ItemResult, SampleSpec
from services.engine.engine import Engine

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class DriverRequest:
    """One request; `blocks` is its table, `computed` the tokens that are in KV, `tokens` what was sampled."""

    prompt: Sequence[int]
    blocks: list[int]
    sampling: SamplingParams = GREEDY
    choice: int = 0
    max_tokens: int = 8
    chunk: int = 10**9
    computed: int = 0
    tokens: list[Token] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        """Ids sampled so far."""
        return [token.id for token in self.tokens]

    @property
    def is_done(self) -> bool:
        """True once max_tokens were sampled."""
        return len(self.tokens) >= self.max_tokens

    def item(self) -> BatchItem:
        """What to feed next: the next chunk of the prompt, or the last token."""
        known = [*self.prompt, *self.output]
        fed = known[self.computed : self.computed + self.chunk]
        is_last = self.computed + len(fed) == len(known)
        return BatchItem(
            token_ids=fed, start=self.computed, block_ids=self.blocks, samples=(self.spec(),) if is_last else ()
        )

    def spec(self) -> SampleSpec:
        """How to sample the next token."""
        return SampleSpec(
            sampling=self.sampling,
            choice=self.choice,
            index=len(self.tokens),
            prompt_ids=self.prompt,
            output_ids=self.output,
        )


class EngineDriver:
    """Hands out blocks in a scattered order and steps requests until all are done."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        count = engine.limits.num_blocks
        self._free = [(7 * index + 3) % count for index in range(count)] if count % 7 else list(range(count))[::-1]

    def request(self, prompt: Sequence[int], **options: object) -> DriverRequest:
        """A request with room for its prompt and its output."""
        request = DriverRequest(prompt, [], **options)  # type: ignore[arg-type]
        request.blocks = self.take_blocks(len(prompt) + request.max_tokens)
        return request

    def take_blocks(self, num_tokens: int) -> list[int]:
        """Fresh blocks for this many tokens."""
        count = -(-num_tokens // self.engine.layout.block_size)
        assert count <= len(self._free), "the test's engine has too few blocks"
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def give_back(self, request: DriverRequest) -> None:
        """Makes a request's blocks free again; their content stays."""
        self._free += request.blocks

    def step(self, requests: Sequence[DriverRequest]) -> list[ItemResult]:
        """One step of these requests together."""
        items = [request.item() for request in requests]
        results = self.engine.step(items)
        for request, item, result in zip(requests, items, results, strict=True):
            request.computed += len(item.token_ids)
            request.tokens.extend(result.tokens)
        return results

    def run(self, requests: Sequence[DriverRequest]) -> list[list[int]]:
        """Steps until every request is done; returns their outputs."""
        while running := [request for request in requests if not request.is_done]:
            for result in self.step(running):
                assert result.error is None, result.error
        return [request.output for request in requests]
