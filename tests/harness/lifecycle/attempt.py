"""Requests of the model, their attempts, what travels between the sides, and the arithmetic that stands for a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.sampling import SamplingParams
from services.common.types import ChoiceTokens, FinishReason, Handoff, Token, WorkRequest
from services.frontend.merge import TokenMerge
from services.frontend.recovery import Recovery

SIZE = 2
OUTPUT = 3
FOREVER = float("inf")
HANDOFF = Handoff(ticket_id="t", worker_id="p", incarnation="1", address="p:1")

Memory = dict[tuple[int, int], int]


@dataclass(eq=False)
class Message:
    """What travels to a side; those of one name arrive in their order."""

    name: str
    to: str
    arrive: Callable[[], None]


@dataclass(eq=False)
class Request:
    """What the client asked for and what it has been told."""

    name: str
    prompt: tuple[int, ...]
    recovery: Recovery
    merge: TokenMerge = field(default_factory=lambda: TokenMerge(1))
    answer: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    attempt: "Attempt | None" = None

    @property
    def expected(self) -> list[int]:
        """The tokens of an undisturbed request."""
        cells: list[int] = []
        tokens = list(self.prompt)
        while len(tokens) < len(self.prompt) + OUTPUT:
            for token in tokens[len(cells) :]:
                cells.append(next_cell(cells[-1] if cells else 0, token))
            tokens.append(next_token(cells))
        return tokens[len(self.prompt) :]


@dataclass(eq=False)
class Attempt:
    """One try of a request: a prefill call and a decode call, or, once tokens are out, a decode call alone.

    `incarnation` is that of the source which the frontend knew then.
    """

    request: Request
    key: int
    name: str
    incarnation: int
    emitted: Mapping[int, tuple[int, ...]]
    open_calls: set[str]
    was_joined_late: bool = False

    @property
    def work(self) -> WorkRequest:
        """As the decode tier takes it."""
        return WorkRequest(
            request_id=self.request.name,
            token_ids=self.request.prompt,
            sampling=SamplingParams(),
            deadline=FOREVER,
            handoff=None if self.emitted else HANDOFF,
            emitted=self.emitted,
        )


@dataclass(eq=False)
class Fetch:
    """One order of an attempt's KV into blocks of the sink; a fenced one may not write any more."""

    number: int
    attempt: Attempt
    block_ids: list[int]
    next_token: int
    is_fenced: bool = False

    @property
    def name(self) -> str:
        """As events call it."""
        return f"{self.attempt.name}/{self.number}"


def part(token: int, index: int) -> ChoiceTokens:
    """One token as a worker reports it."""
    return ChoiceTokens(0, (Token(token, index),), FinishReason.LENGTH if index == OUTPUT - 1 else None)


def next_cell(before: int, token: int) -> int:
    """Content of a position in KV: depends on every token up to it."""
    return (before * 31 + token + 7) % 1_000_003


def next_token(cells: list[int]) -> int:
    """What comes after these positions: depends on each."""
    return sum(cell * (place + 1) for place, cell in enumerate(cells)) % 9973


def read(memory: Memory, block_ids: Any, start: int, end: int) -> list[int]:
    """Cells of positions [start, end); -1 where nothing was ever written."""
    return [memory.get((block_ids[place // SIZE], place % SIZE), -1) for place in range(start, end)]


def write(memory: Memory, block_ids: Any, start: int, cells: list[int]) -> None:
    """Puts cells at the positions from `start` on."""
    for place, cell in enumerate(cells, start):
        memory[block_ids[place // SIZE], place % SIZE] = cell


def compute(memory: Memory, block_ids: Any, start: int, tokens: list[int]) -> None:
    """A forward pass: fills the positions of these tokens from what lies before them."""
    for place, token in enumerate(tokens, start):
        before = read(memory, block_ids, place - 1, place)[0] if place else 0
        write(memory, block_ids, place, [next_cell(before, token)])
