"""What can happen while a channel is being built (F22): one side of it stands still there, dies or falls silent."""

import asyncio
import time

from tests.fault.load_faults import Steady
from tests.fault.network_faults import EVERY_S, serves_again, settled
from tests.fault.scenario import Fault, Scene
from tests.harness.pauses import Pause
from tests.harness.tiers import until

# Longer than a channel may take to be built.
AWAY_S = 12.0
START_S = 120.0


def stand_still(pause: Pause) -> Fault:
    """A worker joins and gets no further than the pause, for longer than the set-up of its channels may take."""

    async def stand(scene: Scene) -> None:
        async with Steady(scene, EVERY_S) as steady:
            joining, victim = await _joins(scene, pause)
            await asyncio.sleep(AWAY_S)
            scene.cluster.resume()
            await joining
            await _is_used(scene, steady, victim)
        await _leaves(scene, victim)

    return stand


def freeze(pause: Pause) -> Fault:
    """A worker joins and is stopped at the pause, for longer than the set-up of its channels may take."""

    async def stop(scene: Scene) -> None:
        async with Steady(scene, EVERY_S) as steady:
            joining, victim = await _joins(scene, pause)
            await scene.cluster.freeze(victim)
            scene.cluster.resume()
            await asyncio.sleep(AWAY_S)
            await scene.cluster.thaw(victim)
            await joining
            await _is_used(scene, steady, victim)
        await _leaves(scene, victim)

    return stop


def kill(pause: Pause) -> Fault:
    """A worker joins and is killed at the pause: nothing of it stays, and its next incarnation is used."""

    async def end(scene: Scene) -> None:
        async with Steady(scene, EVERY_S) as steady:
            joining, victim = await _joins(scene, pause)
            await scene.cluster.kill(victim)
            await asyncio.gather(joining, return_exceptions=True)  # it may have waited to be ready
            scene.cluster.resume()
            await settled(scene.cluster)
            await scene.cluster.start(victim)
            await _is_used(scene, steady, victim)
        await _leaves(scene, victim)

    return end


async def _joins(scene: Scene, pause: Pause) -> "tuple[asyncio.Task[str], str]":
    """Starts one more worker and waits until it stands at the pause; gives its start and its name."""
    cluster, seen = scene.cluster, set[str]()

    def stands() -> bool:
        seen.update(cluster.paused())
        return bool(seen)

    cluster.pause(pause)
    joining = asyncio.create_task(cluster.join(pause.tier))
    await until(stands, timeout_s=START_S)
    (victim,) = seen
    scene.did(victim)
    return joining, victim


async def _is_used(scene: Scene, steady: Steady, victim: str) -> None:
    """Waits until a worker has all its channels and serves."""
    await scene.cluster.routable()
    await serves_again(steady, victim, time.monotonic())


async def _leaves(scene: Scene, victim: str) -> None:
    """The cluster is as large as before."""
    await scene.cluster.terminate(victim)
    await settled(scene.cluster)
