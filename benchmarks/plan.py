"""What will be sent and when: decided before anything is measured, the same for every cluster and every round. Pure."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.span import Span


@dataclass(frozen=True, slots=True)
class Shape:
    """How long requests are; `share` is how many of all requests are of this shape."""

    prompt_tokens: Span
    output_tokens: Span
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Planned:
    """One request: seconds after the start, tokens of its prompt, tokens of its answer."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests in order of arrival; `concurrency` is how many run at once, None leaves that to the arrivals."""

    requests: tuple[Planned, ...]
    concurrency: int | None = None

    @property
    def longest(self) -> int:
        """Prompt and answer of the longest request together, in tokens."""
        return max(request.prompt_tokens + request.output_tokens for request in self.requests)


def make_plan(arrivals: Sequence[float], shapes: Sequence[Shape], seed: int, concurrency: int | None = None) -> Plan:
    """A request for each arrival, of random lengths within the spans of its shape.

    The shapes' shares are kept to as exactly as the number of requests allows, in random order.

    Raises:
        ValueError: there are no arrivals.
    """
    rng = random.Random(f"lengths/{seed}")
    drawn = _spread(shapes, len(arrivals))
    rng.shuffle(drawn)
    requests = tuple(
        Planned(at, shape.prompt_tokens.draw(rng), shape.output_tokens.draw(rng))
        for at, shape in zip(arrivals, drawn, strict=True)
    )
    return _checked(Plan(requests, concurrency))


def read_trace(lines: Iterable[str]) -> Plan:
    """The plan that a trace tells: a JSON object a line, with arrival_s, prompt_tokens and output_tokens.

    Arrivals are moved so that the first is at 0; empty lines are skipped.

    Raises:
        ValueError: a line is no such object (the message has its number), or there is none.
    """
    read = [_row(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    read.sort(key=lambda request: request.arrival_s)
    first = read[0].arrival_s if read else 0.0
    shifted = (Planned(row.arrival_s - first, row.prompt_tokens, row.output_tokens) for row in read)
    return _checked(Plan(tuple(shifted)))


def random_prompt(rng: random.Random, length: int, tokens: Sequence[int]) -> tuple[int, ...]:
    """A prompt of token ids, each drawn from `tokens`."""
    return tuple(rng.choices(tokens, k=length))


def random_prompts(plan: Plan, tokens: Sequence[int], seed: str) -> list[tuple[int, ...]]:
    """A prompt for each request of a plan; the same seed gives the same ones."""
    rng = random.Random(seed)
    return [random_prompt(rng, request.prompt_tokens, tokens) for request in plan.requests]


def ordinary_tokens(vocab_size: int, eos_token_ids: Iterable[int], first: int = 16) -> list[int]:
    """Ids that are no special tokens in common vocabularies: not the first few, none that ends an answer."""
    special = set(eos_token_ids)
    return [token for token in range(first, vocab_size) if token not in special]


def _spread(shapes: Sequence[Shape], count: int) -> list[Shape]:
    """So many shapes, each as often as its share says; the first one gets what rounding leaves."""
    rest = [shape for shape in shapes[1:] for _ in range(round(shape.share * count))]
    return [*rest[:count], *[shapes[0]] * (count - len(rest))]


def _row(number: int, line: str) -> Planned:
    try:
        row = json.loads(line)
        planned = Planned(float(row["arrival_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"trace line {number} is no object with arrival_s, prompt_tokens and output_tokens") from None
    if planned.prompt_tokens < 1 or planned.output_tokens < 1 or not 0 <= planned.arrival_s < float("inf"):
        raise ValueError(f"trace line {number} needs arrival_s of 0 or more and token counts of 1 or more")
    return planned


def _checked(plan: Plan) -> Plan:
    if not plan.requests:
        raise ValueError("there is no request to send")
    return plan
