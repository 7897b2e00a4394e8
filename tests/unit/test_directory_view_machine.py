"""What a watcher believes under any order of joins, leaves, silence, restarts and snapshots that it missed."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.kvtransfer.compatibility import incompatibility
from services.kvtransfer.directory.registry import Registry
from services.kvtransfer.directory.view import MembershipView
from tests.harness.workers import worker_info

LEASE_S = 6.0
GRACE_S = 6.0
NAMES = st.sampled_from(["p", "q"])


class ViewOfRegistry(RuleBasedStateMachine):
    """A real registry, workers that come and go, and a watcher that takes a snapshot now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.starts = 0
        self.starts_seen = 0
        self.numbers = {"p": 1, "q": 1}
        self.heard: set[str] = set()
        self.listed: set[str] = set()  # incarnations in the last snapshot
        self.known: set[str] = set()  # incarnations that this start of the directory has told the watcher of
        self.gone: set[str] = set()  # those of them that have said that they leave, or were replaced
        self.signs: dict[str, float] = {}  # when a grace of an incarnation began
        self.registry = Registry(LEASE_S, incompatibility)
        self.view = MembershipView(GRACE_S, self.hears)
        self.register("p")
        self.register("q")
        self.look()

    def hears(self, incarnation: str) -> bool:
        if incarnation in self.heard:
            self.signs[incarnation] = self.now
        return incarnation in self.heard

    def incarnation(self, name: str) -> str:
        return f"{name}{self.numbers[name]}"

    def believed(self) -> dict[str, str]:
        workers = self.view.current(self.now).workers
        assert [worker.worker_id for worker in workers] == sorted({worker.worker_id for worker in workers})
        return {worker.worker_id: worker.incarnation for worker in workers}

    @rule(name=NAMES)
    def register(self, name: str) -> None:
        self.registry.register(worker_info(name, incarnation=self.incarnation(name)), self.now)
        self.gone.discard(self.incarnation(name))

    @rule(name=NAMES)
    def restart(self, name: str) -> None:
        self.gone |= {self.incarnation(name)} & self.known
        self.numbers[name] += 1
        self.register(name)

    @rule(name=NAMES, is_watched=st.booleans())
    def deregister(self, name: str, is_watched: bool) -> None:
        if self.registry.deregister(name, self.incarnation(name)):
            self.gone |= {self.incarnation(name)} & self.known
        if is_watched:
            self.look()

    @rule(name=NAMES)
    def fall_silent_or_be_heard(self, name: str) -> None:
        self.heard ^= {self.incarnation(name)}

    @rule(seconds=st.sampled_from([3.0, 6.0]), is_watched=st.booleans())
    def wait(self, seconds: float, is_watched: bool) -> None:
        heard = {incarnation for incarnation in self.believed().values() if incarnation in self.heard}
        self.now += seconds
        self.registry.expire(self.now)
        assert heard <= set(self.believed().values()), "whoever is heard is kept"
        if is_watched:
            self.look()

    @rule()
    def restart_directory(self) -> None:
        self.starts += 1
        self.registry = Registry(LEASE_S, incompatibility, first_revision=self.starts * 2**40)
        self.known.clear()
        self.gone.clear()

    @rule()
    def look(self) -> None:
        before, snapshot = self.believed(), self.registry.membership()
        self.view.update(snapshot, self.now)
        listed = {worker.worker_id: worker.incarnation for worker in snapshot.workers}
        for name, incarnation in before.items():
            if name not in listed and (incarnation in self.listed or self.starts > self.starts_seen):
                self.signs[incarnation] = self.now
        self.starts_seen, self.listed = self.starts, set(listed.values())
        self.known |= {*self.listed, *snapshot.expired}
        after = self.believed()
        assert {name: after[name] for name in listed} == listed, "whoever is listed is believed"
        for name in before.keys() - listed.keys():
            assert (name in after) is (before[name] not in self.gone), "exactly those that left are gone"
        assert after.keys() <= before.keys() | listed.keys()

    @invariant()
    def whoever_is_not_listed_had_a_sign_within_a_grace(self) -> None:
        silent = set(self.believed().values()) - self.listed
        assert all(self.now < self.signs[incarnation] + GRACE_S for incarnation in silent)


TestViewOfRegistry = ViewOfRegistry.TestCase
