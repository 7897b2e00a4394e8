"""Both tiers' pure policies driven together: real schedulers, pools and seats, with messages that any order delivers.

A request's legs reach both tiers independently; its seat, the ask for its ticket, the news that its prompt was
admitted, and the arrival of its KV are messages of their own. A test chooses which is delivered next. No clock runs:
where nothing can happen any more, the tiers wait for each other for ever.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from services.common.line import Line, LineLimits, Verdict
from services.common.priority import Priority, rank
from services.decode.plan import Run
from services.decode.scheduler import DecodeScheduler
from services.engine.blocks import BlockPool
from services.prefill.ahead import Ahead
from services.prefill.prompt import Prompt
from services.prefill.scheduler import PrefillScheduler

SIZE = 4
FOREVER_S = 1e9
AGING_S = 10.0


@dataclass(eq=False)
class Request:
    """One request and what has happened to it so far."""

    key: int
    prefill: int
    decode: int
    num_prompt: int
    num_output: int = 2
    n: int = 1
    priority: Priority = Priority.NORMAL
    marks: set[str] = field(default_factory=set[str])
    open_choices: int = 0

    @property
    def is_over(self) -> bool:
        return bool(self.marks & {"done", "cancelled"})


class Tiers:
    """Prefill workers, decode workers and requests between them."""

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        prefill_blocks: Sequence[int],
        decode_blocks: Sequence[int],
        slots: int,
        seats_ahead: int,
        ahead: Sequence[Ahead],
    ) -> None:
        self.requests = requests
        self.ahead = ahead
        self.prefill_pools = [BlockPool(blocks, SIZE) for blocks in prefill_blocks]
        self.decode_pools = [BlockPool(blocks, SIZE) for blocks in decode_blocks]
        self.prefill = [
            PrefillScheduler(pool, max_num_seqs=4, max_num_batched_tokens=8, ahead=allowed)
            for pool, allowed in zip(self.prefill_pools, ahead, strict=True)
        ]
        self.decode = [
            DecodeScheduler(pool, max_num_seqs=slots, max_num_batched_tokens=16) for pool in self.decode_pools
        ]
        limits = LineLimits(places=slots + seats_ahead, max_waiting=10**6, ttl_s=FOREVER_S, aging_s=AGING_S)
        self.seats = [Line(limits) for _ in self.decode_pools]
        self.now = 0.0

    def enabled(self) -> list[tuple[str, int]]:
        """Everything that could happen next."""
        actions = [("prefill_step", place) for place in range(len(self.prefill))]
        actions += [("decode_step", place) for place in range(len(self.decode))]
        return actions + [(name, r.key) for r in self.requests if not r.is_over for name in _messages(r)]

    def apply(self, name: str, key: int) -> bool:
        """Lets one thing happen; False where it was a step that had nothing to do."""
        self.now += 0.1
        if name == "prefill_step":
            return self._prefill_step(self.prefill[key])
        if name == "decode_step":
            return self._decode_step(self.decode[key])
        request = self.requests[key]
        request.marks.add(name)
        getattr(self, f"_{name}")(request)
        return True

    def cancel(self, request: Request) -> None:
        """The client leaves: both legs end, and the ticket is given back."""
        if not request.is_over:
            request.marks.add("cancelled")
            self._free(request)

    def settle(self) -> None:
        """Delivers everything until nothing can happen any more."""
        while any([self.apply(*action) for action in self.enabled() if self._is_open(action)]):
            self.check()

    def check(self) -> None:
        """What must hold at any moment: the books agree, and nobody holds prefill blocks without a seat or credit."""
        for pool in (*self.prefill_pools, *self.decode_pools):
            pool.check()
        for scheduler, allowed in zip(self.prefill, self.ahead, strict=True):
            assert scheduler.stats().ahead <= allowed.prompts

    @property
    def blocks_held(self) -> int:
        return sum(pool.stats().held for pool in (*self.prefill_pools, *self.decode_pools))

    def _is_open(self, action: tuple[str, int]) -> bool:
        return action in self.enabled()

    def _prefill_leg(self, r: Request) -> None:
        tokens = [r.key * 1000 + i for i in range(r.num_prompt)]
        order = rank(r.priority, self.now, AGING_S)
        self.prefill[r.prefill].submit(Prompt(key=r.key, token_ids=tokens, rank=order, is_awaited="ask" in r.marks))

    def _decode_leg(self, r: Request) -> None:
        self._seated(self.seats[r.decode].arrive(r.key, r.priority, self.now, r.n))

    def _ask(self, r: Request) -> None:
        self.prefill[r.prefill].note_awaited(r.key, is_awaited=True)

    def _opened(self, r: Request) -> None:
        tokens = [r.key * 1000 + i for i in range(r.num_prompt)]
        order = rank(r.priority, self.now, AGING_S)
        run = Run(key=r.key, tokens=tokens, num_prompt=r.num_prompt, num_choices=r.n, rank=order, is_fetched=True)
        self.decode[r.decode].submit(run)

    def _fetched(self, r: Request) -> None:
        r.open_choices = r.n
        self.decode[r.decode].join(r.key, dict.fromkeys(range(r.n), 7))
        self.prefill[r.prefill].release(r.key)

    def _prefill_step(self, scheduler: PrefillScheduler) -> bool:
        chunks = scheduler.plan()
        for chunk in chunks:
            self.requests[chunk.prompt.key].marks.add("admitted")
            scheduler.commit(chunk)
            if chunk.is_last:
                self.requests[chunk.prompt.key].marks.add("computed")
        return bool(chunks)

    def _decode_step(self, scheduler: DecodeScheduler) -> bool:
        plan = scheduler.plan()
        for run in plan.reserved:
            self.requests[run.key].marks.add("reserved")
        for share in plan.shares:
            request = self.requests[share.run.key]
            scheduler.commit(share)
            if share.is_sampling and len(share.run.tokens) > request.num_prompt + request.num_output:
                scheduler.finish(share.run)
                request.open_choices -= 1
                if not request.open_choices:
                    request.marks.add("done")
                    self._free(request)
            elif share.is_sampling:
                share.run.tokens.append(7)
        return bool(plan.shares or plan.reserved or plan.preempted)

    def _free(self, r: Request) -> None:
        self.decode[r.decode].cancel(r.key)
        self.prefill[r.prefill].stop(r.key)
        self.prefill[r.prefill].release(r.key)
        self._seated(self.seats[r.decode].leave(r.key, self.now))

    def _seated(self, outcomes: Sequence[object]) -> None:
        for outcome in outcomes:
            assert outcome.verdict is Verdict.ADMITTED  # type: ignore[attr-defined]
            self.requests[outcome.key].marks.add("seated")  # type: ignore[attr-defined]


def _messages(r: Request) -> Iterator[str]:
    """Messages about a request that are on their way."""
    after = {
        "prefill_leg": set[str](),
        "decode_leg": set[str](),
        "ask": {"seated"},
        "opened": {"ask", "admitted"},
        "fetched": {"reserved", "computed"},
    }
    return (name for name, needed in after.items() if name not in r.marks and needed <= r.marks)
