"""What can be done to the links of a cluster on real processes (F12)."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial

from tests.fault.checks import unsettled
from tests.fault.cluster_links import CONTROL, DATA, DIRECTORY
from tests.fault.evidence import OK
from tests.fault.load_faults import Steady
from tests.fault.scenario import Cluster, Fault, Scene
from tests.harness.link import BROKEN, SLOW, Hurt
from tests.harness.tiers import until

HURT_S = 6.0
# Longer than a lease in the directory, and than it takes everybody to find it again.
LEASES_END_S = 10.0
BACK_S = 5.0
SETTLED_S = 30.0
EVERY_S = 0.2
LASTING_S = (2.0, 10.0)
# Growing pauses before a worker is asked again, and a new channel.
USED_AGAIN_S = 60.0
KINDS = {**BROKEN, **SLOW}


def hurt_link_of_holder(kind: str, how: Hurt) -> Fault:
    """A link of the worker that holds the subject is hurt for seconds under load, and is used again afterwards."""

    async def hurt(scene: Scene) -> None:
        victim = sorted(scene.holders)[0]
        name = f"{victim} {kind}"
        async with Steady(scene, EVERY_S) as steady:
            scene.did(victim)
            scene.cluster.links.hurt(name, how)
            try:
                await asyncio.sleep(HURT_S)
            finally:
                await scene.cluster.links.heal(name)
            healed = time.monotonic()
            await serves_again(steady, victim, healed)
        await settled(scene.cluster)

    return hurt


def hurt_link_of_directory(how: Hurt) -> Fault:
    """The directory's link is hurt under load for longer than its leases hold, and heals."""

    async def hurt(scene: Scene) -> None:
        name = f"{DIRECTORY} {CONTROL}"
        async with Steady(scene, EVERY_S) as steady:
            scene.did()
            scene.cluster.links.hurt(name, how)
            try:
                await asyncio.sleep(LEASES_END_S)
            finally:
                await scene.cluster.links.heal(name)
            await asyncio.sleep(BACK_S)
        assert all(record.status == OK for record in steady.records), "a request paid for the directory's link"

    return hurt


async def settled(cluster: Cluster) -> None:
    """Waits until every pair has its channel: sides of channels that nobody joined stay until their time is up."""
    async with asyncio.timeout(SETTLED_S):
        while True:
            states = {name: await cluster.state(name) for name in cluster.names("prefill", "decode")}
            if not unsettled(states):
                return
            await asyncio.sleep(0.2)


async def serves_again(steady: Steady, victim: str, since: float) -> None:
    """Waits until a request of the load that began after a moment was served by a worker, over its links."""

    def served() -> bool:
        return any(victim in record.workers and record.started > since for record in steady.records)

    await until(served, timeout_s=USED_AGAIN_S)


def random_network_faults(
    cluster: Cluster, chance: random.Random, note: Callable[[str], None]
) -> dict[str, Callable[[], Awaitable[None]]]:
    """Every fault on every sort of link, by name; each notes whose link it hurts, and heals it after seconds."""

    async def hurt(links: list[str], how: Hurt) -> None:
        name = chance.choice(links)
        note(name.split()[0])
        cluster.links.hurt(name, how)
        try:
            await asyncio.sleep(chance.uniform(*LASTING_S))
        finally:
            await cluster.links.heal(name)

    running = [name for name in cluster.links.names() if name.split()[0] in cluster.names()]
    sorts = {
        "a worker's control link": [name for name in running if name.endswith(CONTROL) and DIRECTORY not in name],
        "the directory's link": [name for name in running if DIRECTORY in name],
        "a data link": [name for name in running if name.endswith(DATA)],
    }
    return {
        f"network: {what} on {sort}": partial(hurt, links, how)
        for sort, links in sorts.items()
        for what, how in KINDS.items()
        if links
    }
