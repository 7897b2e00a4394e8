"""The nouns of a fault scenario: where it runs, in which phase the fault comes, what is done, and what must follow.

A scenario runs on anything that is a `Cluster`: real processes (`real_cluster.py`), or the same processes in one event
loop on virtual time (`simulated_cluster.py`). `play.py` runs one and writes down the evidence; `checks.py` judges it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.common.priority import Priority
from services.common.sampling import SamplingParams
from services.common.types import Tier
from tests.fault.cluster_links import ClusterLinks
from tests.fault.evidence import OK, Evidence, Part, ProcessState, Record
from tests.harness.ordered_faults import HurtOrder
from tests.harness.pauses import Pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """How many processes of each role; there is one directory besides.

    Where it `is_proxied`, every link leads through a proxy and can be hurt; on real processes alone.
    """

    frontend: int = 1
    prefill: int = 2
    decode: int = 2
    flags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    is_proxied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked: prompts of `prompt_tokens`, each answered with `max_tokens`, by `deadline_s` seconds.

    `subjects` are sent first, until they are in the phase; then `companions`, all at once. `sampling` has further
    parameters of all of them.
    """

    prompt_tokens: int = 48
    max_tokens: int = 24
    deadline_s: float = 30.0
    subject_deadline_s: float = 30.0
    subjects: int = 1
    companions: int = 6
    sampling: Mapping[str, Any] = field(default_factory=dict)


class Cluster(Protocol):
    """What a scenario does with a cluster, real or simulated. Names are `prefill-0`, `frontend-1`, `kvtransfer`."""

    is_timing_exact: bool
    is_timing_judged: bool
    """Whether the machine is free enough for seconds to say anything about the product."""
    lease_s: float
    links: ClusterLinks
    """Those that can be hurt, of spare processes, too; none where the topology is not proxied."""

    def names(self, *roles: str) -> list[str]:
        """Processes of these roles that were started and not taken away."""
        ...

    def address(self, name: str) -> str:
        """host:port of a process."""
        ...

    def expected(self, prompt: list[int], sampling: SamplingParams) -> dict[int, list[int]]:
        """Tokens by choice of an undisturbed request."""
        ...

    async def kill(self, name: str) -> None:
        """Ends a process at once, as SIGKILL does; returns once it is known to be gone."""
        ...

    async def terminate(self, name: str) -> int | None:
        """Asks a process to end, as SIGTERM does, and waits for it; gives its exit code."""
        ...

    async def freeze(self, name: str) -> None:
        """Stops a process without ending it, as SIGSTOP does."""
        ...

    async def thaw(self, name: str) -> None:
        """Lets a frozen process go on, as SIGCONT does."""
        ...

    async def start(self, name: str, **flags: str) -> None:
        """Starts a process at its old address, as another incarnation, and waits until it serves."""
        ...

    async def join(self, role: str, **flags: str) -> str:
        """Starts one more process of a role and waits until it serves; gives its name."""
        ...

    async def routable(self) -> None:
        """Waits until every frontend knows every worker that runs."""
        ...

    def slow_down(self, name: str, times: float) -> None:
        """From now on every step of a worker takes so many times as long as usual; 1 is as usual."""
        ...

    def hurt(self, order: HurtOrder) -> None:
        """From now on messages of KV are hurt on their way as the order says, and as no earlier one did."""
        ...

    def num_hurt(self, name: str) -> int:
        """Messages of KV of a worker that were hurt so far."""
        ...

    def pause(self, pause: Pause) -> None:
        """From now on every worker of the pause's tier stands still where the pause says."""
        ...

    def resume(self) -> None:
        """Ends all pauses."""
        ...

    def paused(self) -> set[str]:
        """Workers that stand still at a pause."""
        ...

    async def state(self, name: str) -> ProcessState:
        """What a process owns and counts now.

        Raises:
            BatonError: it does not answer.
        """
        ...

    def ended(self) -> list[tuple[str, int | None]]:
        """Every end of a process so far, with its exit code."""
        ...

    def unready(self) -> list[str]:
        """Processes that served and then did not, each time that it happened."""
        ...


States = Mapping[str, ProcessState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A moment in the life of a request that a pause makes last.

    `victims` looks at the workers' states before the request and now, and at who stands still; it names the workers
    that hold the subject once the phase is reached. Where it `is_blocked`, requests are sent ahead until every worker
    that can stand still does, so that the subject has to wait behind one.
    Where it `is_passed`, the pause ends before the fault: the subjects are then at work.
    """

    name: str
    pause: Pause | None
    tier: Tier
    victims: Callable[[States, States, set[str]], set[str]]
    is_blocked: bool = False
    is_passed: bool = False


Fault = Callable[["Scene"], Awaitable[None]]
"""What is done once the phase is reached; it adds whom it was done to to the evidence."""


class Scene(Protocol):
    """A running scenario as its fault sees it."""

    cluster: Cluster
    evidence: Evidence
    holders: set[str]
    """Workers that hold the subject."""

    def did(self, *victims: str) -> None:
        """Writes down that the fault is done now, to these processes."""
        ...

    def touch(self, *victims: str) -> None:
        """Writes down that the fault, done before, is done to these processes, too."""
        ...

    def withdraw(self, *records: Record) -> None:
        """Lets the clients cancel requests, or all the subjects."""
        ...

    def ask(self, part: Part, count: int = 1, priority: Priority = Priority.NORMAL) -> list[Record]:
        """Sends further requests, as the load says."""
        ...

    async def ended(self, part: Part) -> None:
        """Waits until every request of a part has ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What must follow, beyond what always holds.

    `statuses` says how requests of a part may end (default: OK alone), `moves` how often a subject that ends well moves
    (least, most), `metrics` by how much a metric or a worker's count grows over all surviving processes (least, most),
    `exits` the exit codes of victims. `unready` names others than the victims that may stop serving. Requests of a
    frontend that is a victim may also end as `lost_with_frontend` says. New requests that are refused are so within
    `refused_within_s`, and told when to come back where `is_hinted`. Subjects that the fault touched go on or end
    `moved_within_s`. `are_gaps_judged` is False where the load itself changes.
    """

    statuses: Mapping[Part, tuple[str, ...]] = field(default_factory=dict)
    moves: tuple[int, int] = (0, 0)
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    exits: tuple[int | None, ...] = (-9,)
    lost_with_frontend: tuple[str, ...] = ()
    refused_within_s: float = float("inf")
    moved_within_s: float = 3.0
    is_hinted: bool = False
    are_gaps_judged: bool = True
    unready: frozenset[str] = frozenset()
    recovers: bool = True

    def statuses_of(self, part: Part) -> tuple[str, ...]:
        """How requests of a part may end."""
        return self.statuses.get(part, (OK,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One case of one row of the matrix."""

    row: str
    name: str
    phase: Phase
    fault: Fault
    topology: Topology = Topology()
    load: Load = Load()
    expect: Expectation = Expectation()
    is_slow: bool = False
    is_simulated_only: bool = False
    is_real_only: bool = False

    @property
    def title(self) -> str:
        """As it is called in reports."""
        return f"{self.row} {self.name}: {self.phase.name}"
