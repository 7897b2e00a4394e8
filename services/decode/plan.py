"""What a decode step is planned from and what a plan says. Pure data."""

from dataclasses import dataclass, field

from services.common.priority import Priority
from services.common.types import WorkRequest


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """One choice: `tokens` are prompt and output so far, positions below `computed` are in KV.

    Until the prompt is in KV one run stands for all `num_choices` choices; then it forks.
    """

    key: int
    tokens: list[int]
    num_prompt: int
    choice: int = 0
    num_choices: int = 1
    cache_salt: str = ""
    rank: float = 0.0
    is_fetched: bool = False
    is_forked: bool = False
    block_ids: list[int] = field(default_factory=list[int])
    chain: list[bytes] = field(default_factory=list[bytes])
    computed: int = 0
    cached: int = 0

    @property
    def missing(self) -> int:
        """Tokens that still need a forward pass; 1 for a running choice."""
        return len(self.tokens) - self.computed


def queue_class(request: WorkRequest) -> Priority:
    """Class of a request in this worker's queues: one that has begun elsewhere has a reader who sees it stand still."""
    return Priority.HIGH if request.emitted else request.priority


def new_runs(key: int, request: WorkRequest, rank: float) -> list[Run]:
    """The runs that a request begins with: one for all choices, or one for each choice that another worker began."""
    prompt = list(request.token_ids)
    fresh = Run(
        key=key,
        tokens=prompt,
        num_prompt=len(prompt),
        num_choices=request.sampling.n,
        cache_salt=request.cache_salt,
        rank=rank,
        is_fetched=request.handoff is not None,
    )
    begun = [
        Run(
            key=key,
            tokens=[*prompt, *token_ids],
            num_prompt=len(prompt),
            choice=choice,
            cache_salt=request.cache_salt,
            rank=rank,
            is_forked=True,
        )
        for choice, token_ids in sorted(request.emitted.items())
    ]
    return begun or [fresh]


@dataclass(frozen=True, slots=True)
class Share:
    """Positions [start, end) of a run, computed in one step; `is_sampling` where its next token comes of it."""

    run: Run
    start: int
    end: int
    is_sampling: bool


@dataclass(slots=True)
class StepPlan:
    """One step. Copies (source block, destination block) come before the forward pass.

    `admitted` runs got blocks and are computed here, `reserved` ones got blocks and wait for their KV.
    """

    shares: list[Share] = field(default_factory=list[Share])
    copies: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    admitted: list[Run] = field(default_factory=list[Run])
    reserved: list[Run] = field(default_factory=list[Run])
    preempted: list[Run] = field(default_factory=list[Run])
