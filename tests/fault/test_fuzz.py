"""Hostile calls of every RPC: nothing crashes, nothing leaks, and no client can provoke INTERNAL.

A longer run, or the one that found something:

    BATON_TEST_FUZZ_CALLS=100000 BATON_TEST_FUZZ_SEED=7 pytest -m slow tests/fault/test_fuzz.py
"""

import asyncio
import gc
import os

import psutil
import pytest

from tests.harness.fuzz.campaign import Campaign, Report
from tests.harness.fuzz.deployment import FINAL, Deployment, deployment
from tests.harness.fuzz.seeds import seeds
from tests.harness.fuzz.values import Harvest
from tests.harness.tiers import until

SEED = int(os.environ.get("BATON_TEST_FUZZ_SEED", "1"))
CALLS = int(os.environ.get("BATON_TEST_FUZZ_CALLS", "10000"))
QUICK_CALLS = 1_000
WARM_UP_CALLS = 300
# gRPC and the interpreter open a few descriptors and threads of their own at their leisure.
SLACK = 8
GROWTH_BYTES = 96 * 2**20


async def fuzz(target: Deployment, count: int, seed: int, *, final: bool = False) -> Report:
    """Calls all RPCs but those that end a worker's service, or those alone; fails where one found a fault."""
    methods = [method for method in await target.methods() if (method.name in FINAL) is final]
    harvest = Harvest()
    good = seeds(target.cluster.prefill.info, target.cluster.decode.info, harvest)
    report = await Campaign(methods, good, harvest, seed).run(count)
    assert not report.findings, f"seed {seed}:\n" + "\n".join(report.findings)
    assert not target.complaints, f"seed {seed}: {target.complaints}"
    return report


async def fuzz_beside_good_requests(target: Deployment, count: int, seed: int) -> Report:
    """As `fuzz`; meanwhile good requests are asked, which get their right tokens or a typed error."""
    fuzzing = asyncio.create_task(fuzz(target, count, seed))
    while not fuzzing.done():
        await target.good_request()
        await asyncio.wait({fuzzing}, timeout=0.1)
    return await fuzzing


async def footprint(target: Deployment) -> dict[str, int]:
    """What is held once everything is at rest and good requests are answered as before."""
    await target.at_rest()
    await target.serves()
    await target.at_rest()
    return held()


def held() -> dict[str, int]:
    """What this process, in which everything runs, holds now."""
    gc.collect()  # gRPC keeps the socket of a closed channel until Python forgets the channel, which is in cycles
    process = psutil.Process()
    return {
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "tasks": len(asyncio.all_tasks()),
        "bytes": process.memory_info().rss,
    }


async def comes_back_to(target: Deployment, before: dict[str, int]) -> None:
    """Waits until no more is held than before."""
    await footprint(target)
    slack = {"descriptors": SLACK, "threads": SLACK, "tasks": SLACK, "bytes": GROWTH_BYTES}
    try:
        await until(lambda: all(count <= before[name] + slack[name] for name, count in held().items()))
    except TimeoutError:
        raise AssertionError(f"before {before}, afterwards {held()}") from None


async def test_hostile_calls_of_every_rpc_do_no_harm():
    """After hostile calls of each RPC: no INTERNAL, nothing held, good requests answered as before."""
    async with deployment() as target:
        await fuzz(target, WARM_UP_CALLS, SEED + 1)
        before = await footprint(target)
        report = await fuzz_beside_good_requests(target, QUICK_CALLS, SEED)
        await comes_back_to(target, before)
        assert report.calls == QUICK_CALLS
        reached = report.methods_that_said("OK") | report.methods_that_said("DEADLINE_EXCEEDED")
        assert reached >= {method.path for method in await target.methods() if method.name not in FINAL}


async def test_hostile_drains_do_no_harm():
    """RPCs that end a worker's service are called hostilely too: no INTERNAL, and nothing is held afterwards."""
    async with deployment() as target:
        await fuzz(target, 60, SEED, final=True)
        await target.at_rest()


@pytest.mark.slow
@pytest.mark.timeout(max(300, CALLS // 20))
async def test_a_long_campaign_does_no_harm():
    """As the short one, over many more calls; memory stays flat."""
    async with deployment() as target:
        await fuzz(target, 1_000, SEED + 1)
        before = await footprint(target)
        report = await fuzz_beside_good_requests(target, CALLS, SEED)
        print(f"{report.calls} calls with seed {SEED}", *sorted(report.codes.items()), sep="\n")  # noqa: T201
        await comes_back_to(target, before)
