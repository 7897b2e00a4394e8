"""What can be done to the KV of a cluster on its way (F13, F14)."""

import time

from tests.fault.evidence import OK, Part, Record
from tests.fault.load_faults import Steady
from tests.fault.network_faults import EVERY_S, serves_again, settled
from tests.fault.scenario import Fault, Scene
from tests.harness.faulty_transport import Fault as Hurt
from tests.harness.ordered_faults import UNHURT, HurtOrder
from tests.harness.tiers import until

# Requests at a time: as many as both decode workers have seats for.
CONCURRENCY = 16
LONGEST_S = 120.0
OK_SHARE = 0.99


def hurt_message(kind: Hurt) -> Fault:
    """The next message that the worker of the subject sends is hurt; afterwards its KV is taken again."""

    async def hurt(scene: Scene) -> None:
        victim = sorted(scene.holders)[0]
        before = scene.cluster.num_hurt(victim)
        async with Steady(scene, EVERY_S) as steady:
            scene.did(victim)
            scene.cluster.hurt(HurtOrder(kinds=(kind,), most=1, worker=victim))
            await until(lambda: scene.cluster.num_hurt(victim) > before)
            await serves_again(steady, victim, time.monotonic())
        scene.cluster.hurt(UNHURT)
        await settled(scene.cluster)

    return hurt


def hurt_share(share: float, requests: int) -> Fault:
    """A share of all messages is hurt, in any way, while so many requests run; hardly any of them may fail."""

    async def hurt(scene: Scene) -> None:
        workers = scene.cluster.names("prefill")
        before = sum(map(scene.cluster.num_hurt, workers))
        scene.did()
        scene.cluster.hurt(HurtOrder(share=share, seed=14))
        records = await _asked(scene, requests)
        scene.cluster.hurt(UNHURT)
        num_hurt = sum(map(scene.cluster.num_hurt, workers)) - before
        assert num_hurt > share * requests / 2, f"{num_hurt} messages were hurt"
        num_ok = sum(record.status == OK for record in records)
        assert num_ok >= OK_SHARE * requests, f"{num_ok} of {requests} requests ended OK, {num_hurt} messages hurt"
        await settled(scene.cluster)

    return hurt


async def _asked(scene: Scene, requests: int) -> list[Record]:
    """So many requests, a few at a time; all have ended."""
    records = list[Record]()

    def has_room() -> bool:
        return sum(record.ended is None for record in records) < CONCURRENCY

    while len(records) < requests:
        await until(has_room, timeout_s=LONGEST_S)
        records += scene.ask(Part.COMPANION)
    await scene.ended(Part.COMPANION)
    return records
