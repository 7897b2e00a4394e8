"""What can be done to a cluster once a phase is reached."""

import asyncio
import time
from unittest import mock

from tests.fault.evidence import OK, Part
from tests.fault.scenario import Fault, Scene

DIRECTORY = "kvtransfer"
ZOMBIE_S = 10.0
# Longer than the lease of a worker in the directory.
DIRECTORY_AWAY_S = 8.0
YEAR_S = 365 * 86400.0
REAL_TIME = time.time  # noqa: TID251 - nothing may look at it, which is what is shown


async def kill_holder(scene: Scene) -> None:
    """SIGKILL of the worker that holds the subject."""
    victim = sorted(scene.holders)[0]
    scene.did(victim)
    await scene.cluster.kill(victim)


async def cancel(scene: Scene) -> None:
    """The client cancels the subject; its worker still stands still."""
    scene.did()
    scene.withdraw()
    await scene.ended(Part.SUBJECT)


async def let_time_run_out(scene: Scene) -> None:
    """The subject's worker stands still until the subject's time is up."""
    await scene.ended(Part.SUBJECT)
    scene.did()


async def kill_holder_and_start_again(scene: Scene) -> None:
    """SIGKILL of the worker that holds the subject; the next incarnation comes at the same address at once."""
    await kill_holder(scene)
    (victim,) = scene.evidence.victims
    scene.cluster.resume()
    await scene.cluster.start(victim)


async def kill_first_frontend(scene: Scene) -> None:
    """SIGKILL of a frontend; the others live on."""
    scene.did("frontend-0")
    await scene.cluster.kill("frontend-0")


async def kill_only_frontend(scene: Scene) -> None:
    """SIGKILL of the frontend; it is started again at the same address."""
    await kill_first_frontend(scene)
    scene.cluster.resume()
    await scene.cluster.start("frontend-0")


async def freeze_holder(scene: Scene) -> None:
    """SIGSTOP of the worker that holds the subject, for 10 s; the others go on meanwhile."""
    victim = sorted(scene.holders)[0]
    scene.did(victim)
    await scene.cluster.freeze(victim)
    scene.cluster.resume()
    await asyncio.sleep(ZOMBIE_S)
    await scene.cluster.thaw(victim)


def drain(role: str) -> Fault:
    """SIGTERM of one process of a role while it has requests, where there is one that has."""

    async def terminate(scene: Scene) -> None:
        victim = sorted({*scene.holders} & {*scene.cluster.names(role)} or {*scene.cluster.names(role)})[0]
        scene.did(victim)
        await scene.cluster.terminate(victim)

    return terminate


async def lose_all_workers(scene: Scene) -> None:
    """SIGKILL of every worker; requests are refused until one of each tier is started again."""
    lost = scene.cluster.names("prefill", "decode")
    scene.did(*lost)
    await asyncio.gather(*(scene.cluster.kill(name) for name in lost))
    refused = scene.ask(Part.PROBE, 3)
    await scene.ended(Part.PROBE)
    assert all(record.status != OK for record in refused), "a request was served although every worker is gone"
    await scene.cluster.start("prefill-0")
    await scene.cluster.start("decode-0")
    scene.did()


async def restart_directory(scene: Scene) -> None:
    """SIGKILL of the directory for longer than its leases; then it comes back and knows nobody."""
    scene.did(DIRECTORY)
    await scene.cluster.kill(DIRECTORY)
    served = scene.ask(Part.COMPANION, 4)
    await asyncio.sleep(DIRECTORY_AWAY_S)
    await scene.ended(Part.COMPANION)
    assert all(record.status == OK for record in served), "without a directory known routes no longer work"
    await scene.cluster.start(DIRECTORY)
    await scene.cluster.routable()


async def lose_worker_unseen(scene: Scene) -> None:
    """A worker is killed while the directory is away: what the directory knew of it is stale."""
    victim = sorted(scene.holders)[0]
    scene.did(DIRECTORY, victim)
    await scene.cluster.kill(DIRECTORY)
    await scene.cluster.kill(victim)
    scene.cluster.resume()
    await scene.cluster.start(DIRECTORY)
    scene.ask(Part.COMPANION, 4)
    await scene.cluster.routable()


async def jump_wall_clock(scene: Scene) -> None:
    """The wall clock jumps by a year, forth and back: nothing may look at it."""
    scene.did()
    for jump in (YEAR_S, -YEAR_S):
        with mock.patch("time.time", lambda jump=jump: REAL_TIME() + jump):
            await asyncio.sleep(scene.cluster.lease_s)
