"""Decides whether a request whose workers failed goes on elsewhere. Pure.

Before its first token a request starts again on another route (replay). After it, another decode worker computes prompt
and emitted tokens again and goes on at the next index (migration): sampling is keyed by (seed, choice, index), so the
stream continues as it would have. Either way the client sees one stream without a gap.

A move costs: it counts against the request's own limit and is paid for out of the frontend's retry budget. Where only
workers are left that have failed the request already, it waits a little first, longer each time; and it is not begun
where the time that is left cannot be enough. Only a move away from a worker that leaves costs nothing.

A request that was in a step in which the model raised may be the cause, and may end every worker that it is given to.
It gets one more chance, on whatever else happened to that worker.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from services.common.errors import BatonError, Draining, NoWorker, Retry, StepFailed, Unservable
from services.frontend.retry_budget import RetryBudget
from services.frontend.router import Route

REPLAY = "replay"
MIGRATION = "migration"

# In the details of an error: why the request did not go on with other workers.
NOT_MOVED = "not_moved"

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
# Moves away from workers that leave cost nothing, but are bounded all the same.
MAX_GRACEFUL_MOVES = 16
# So many steps may fail with a request in them.
MAX_FAILED_STEPS = 2


@dataclass(slots=True)
class Recovery:
    """The moves of one request; `max_moves` bounds those after failures, 0 forbids all.

    `avoided` workers are used again only where no other can.
    """

    max_moves: int
    budget: RetryBudget
    moves: int = 0
    graceful_moves: int = 0
    avoided: set[str] = field(default_factory=set[str])
    _failed_steps: int = 0
    _failed: set[str] = field(default_factory=set[str])
    _cause: BatonError | None = None

    def move(self, error: BatonError, workers: Collection[str], now: float) -> None:
        """Takes note of a failure over a route of these workers; returns where the request may go on.

        Raises:
            Unservable: it may be the request that makes workers fail.
            BatonError: the failure itself, where trying again cannot help, the moves are used up or the budget is.
        """
        if error.retry is Retry.NEVER:
            raise error
        self._failed_steps += isinstance(error, StepFailed)
        if self._failed_steps >= MAX_FAILED_STEPS:
            raise _not_moved(_unservable(), "failed_steps") from error
        is_graceful = isinstance(error, Draining)
        if not self._may_move(is_graceful=is_graceful):
            raise _not_moved(error, "max_moves")
        if not is_graceful and not self.budget.take(now):
            raise _not_moved(error, "retry_budget")
        self.moves += 1
        self.graceful_moves += is_graceful
        self._cause = error
        self._failed.update(workers)
        if error.retry is Retry.OTHER_WORKER:
            self.avoided.update(workers)

    def pause_s(self, route: Route, *, left_s: float, least_s: float, jitter: float) -> float:
        """Seconds to wait before this route is taken; 0 unless all its workers have failed this request already.

        `left_s` is the time that the request has, `least_s` what it needs to go on, `jitter` is uniform in [0, 1).

        Raises:
            BatonError: the failure that made the request move, where the time cannot be enough.
        """
        if self._cause is None:
            return 0.0
        pause_s = 0.0
        if {part.worker.worker_id for part in (route.prefill, route.decode) if part is not None} <= self._failed:
            longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self.moves - 1))
            pause_s = max(longest * (0.5 + jitter / 2), self._cause.retry_after_s or 0.0)
        if pause_s + least_s >= left_s:
            raise _not_moved(self._cause, "deadline")
        return pause_s

    def _may_move(self, *, is_graceful: bool) -> bool:
        if is_graceful:
            return self.max_moves > 0 and self.graceful_moves < MAX_GRACEFUL_MOVES
        return self.moves - self.graceful_moves < self.max_moves

    def no_route(self, error: BatonError) -> BatonError:
        """What to tell the client where no route is left: the failure that made the request move, if one did.

        When to come back is known of the missing workers alone.
        """
        if not isinstance(error, NoWorker) or self._cause is None:
            return error
        self._cause.retry_after_s = self._cause.retry_after_s or error.retry_after_s
        return self._cause


def _unservable() -> Unservable:
    message = f"{MAX_FAILED_STEPS} workers failed in steps with this request, which may be the cause; do not repeat it"
    return Unservable(message)


def _not_moved(error: BatonError, why: str) -> BatonError:
    error.details[NOT_MOVED] = why
    return error
