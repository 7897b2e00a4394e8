"""What can be done to a cluster under load: storms, scaling, upgrades, slowness, overload."""

import asyncio
import random

from services.common.priority import Priority
from tests.fault.evidence import OK, Part, Record
from tests.fault.scenario import Fault, Scene

WAVES, WAVE = 4, 300
LEAST, MOST = 1, 3
SLOWNESS = 10.0
# Requests of a steady load: one every so many seconds. Real processes that start beside it need the same cores.
EVERY_S = 0.05
BESIDE_STARTS_S = 0.15


async def storm(scene: Scene) -> None:
    """Four waves of 300 requests, each of them cancelled at some moment of its life."""
    scene.did()
    chance = random.Random(11)
    for _ in range(WAVES):
        wave = scene.ask(Part.SUBJECT, WAVE)
        for record in chance.sample(wave, len(wave)):
            await asyncio.sleep(chance.uniform(0, 0.004))
            scene.withdraw(record)
        await scene.ended(Part.SUBJECT)


async def scale_up_and_down(scene: Scene) -> None:
    """Each tier gets two more workers, one by one, and loses them again, gracefully."""
    scene.did()
    async with Steady(scene):
        for role in ("prefill", "decode"):
            joined = [await scene.cluster.join(role) for _ in range(MOST - LEAST)]
            await scene.cluster.routable()
            for name in joined:
                scene.touch(name)
                await scene.cluster.terminate(name)


def churn(changes: int) -> Fault:
    """Workers join and leave at random, gracefully; one of each tier always stays."""

    async def join_and_leave(scene: Scene) -> None:
        scene.did()
        chance = random.Random(19)
        async with Steady(scene):
            for _ in range(changes):
                await one_change(scene, chance)
                await asyncio.sleep(chance.uniform(0, 0.5))
            await as_few_as_before(scene)

    return join_and_leave


async def one_change(scene: Scene, chance: random.Random) -> None:
    """A worker joins, or leaves gracefully."""
    role = chance.choice(("prefill", "decode"))
    names = scene.cluster.names(role)
    if len(names) < MOST and (len(names) == LEAST or chance.random() < 0.5):
        await scene.cluster.join(role)
        return
    leaving = chance.choice(names)
    scene.touch(leaving)
    await scene.cluster.terminate(leaving)


async def roll(scene: Scene) -> None:
    """Replaces every worker, prefill first, by one of another version, which joins before the old one leaves."""
    scene.did()
    async with Steady(scene):
        for role in ("prefill", "decode"):
            for old in scene.cluster.names(role):
                await scene.cluster.join(role, version="next")
                scene.touch(old)
                await scene.cluster.terminate(old)


async def as_few_as_before(scene: Scene) -> None:
    """What a worker owns grows with its peers; so that it can be compared, as many of them stay as there were."""
    for role in ("prefill", "decode"):
        for leaving in scene.cluster.names(role)[LEAST:]:
            scene.touch(leaving)
            await scene.cluster.terminate(leaving)


def slow(role: str) -> Fault:
    """One of two workers of a role takes ten times as long for each step."""

    async def slow_down(scene: Scene) -> None:
        victim, other = scene.cluster.names(role)
        scene.did(victim)
        scene.cluster.slow_down(victim, SLOWNESS)
        async with Steady(scene, EVERY_S) as steady:
            await asyncio.sleep(6.0)
        scene.cluster.slow_down(victim, 1.0)
        served = [name for record in steady.records for name in record.workers]
        assert served.count(other) > 2 * served.count(victim), (served.count(other), served.count(victim))
        # Nobody waits behind the slow one who need not: the median request is as quick as on the fast one.
        assert _median(steady.records) < _median([r for r in steady.records if victim in r.workers])

    return slow_down


async def overload(scene: Scene) -> None:
    """Three tenants ask three times what the cluster can do; one of them, of low priority, asks most of it."""
    scene.did()
    for name in scene.cluster.names("prefill", "decode"):
        scene.cluster.slow_down(name, 1.0)  # none is quicker than usual, so that the load is three times what they can
    high: list[Record] = []
    low: list[Record] = []
    for turn in range(60):
        low += scene.ask(Part.COMPANION, 2, priority=Priority.LOW)
        if turn % 6 == 0:
            high += scene.ask(Part.SUBJECT, 1, priority=Priority.HIGH)
        if turn % 3 == 0:
            scene.ask(Part.COMPANION, 1, priority=Priority.NORMAL)
        await asyncio.sleep(EVERY_S)
    await scene.ended(Part.SUBJECT)
    await scene.ended(Part.COMPANION)
    assert all(record.status == OK for record in high), "a request of high priority was turned away"
    served = [record for record in low if record.status == OK]  # those turned away ended at once
    assert _median(high) < _median(served) / 2, f"high {_median(high):.2f} s, low {_median(served):.2f} s"


class Steady:
    """A steady load of short requests, until the block ends; all of them are companions."""

    def __init__(self, scene: Scene, every_s: float | None = None) -> None:
        self.records: list[Record] = []
        self._scene = scene
        self._every_s = every_s or (EVERY_S if scene.cluster.is_timing_exact else BESIDE_STARTS_S)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Steady":
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._scene.ended(Part.COMPANION)

    async def _ask(self) -> None:
        while True:
            self.records += self._scene.ask(Part.COMPANION)
            await asyncio.sleep(self._every_s)


def _median(records: list[Record]) -> float:
    """Seconds that a request of these takes."""
    took = sorted(record.ended - record.started for record in records if record.ended is not None)
    return took[len(took) // 2] if took else float("inf")
