"""Waits until a frontend can route to every worker that was started.

A process is ready by itself before the frontend has met it; in between, a request would be served by fewer workers.
"""

import asyncio

from services.cli.cluster_plan import ClusterPlan
from services.common.errors import BatonError
from services.frontend.client import GenerationClient

_INTERVAL_S = 0.05


async def routes_ready(plan: ClusterPlan, timeout_s: float) -> bool:
    """True once every frontend of the plan knows all its workers; False where the time ran out first."""
    prefills = len(plan.of_role("prefill"))
    decodes = len(plan.of_role("decode")) + len(plan.of_role("colocated"))
    try:
        async with asyncio.timeout(timeout_s):
            for frontend in plan.of_role("frontend"):
                await _knows(frontend.address, prefills, decodes)
    except TimeoutError:
        return False
    return True


async def _knows(address: str, prefills: int, decodes: int) -> None:
    async with GenerationClient(address) as client:
        while True:
            try:
                models = await client.list_models()
            except BatonError:
                models = ()
            if any(model.prefill_workers >= prefills and model.decode_workers >= decodes for model in models):
                return
            await asyncio.sleep(_INTERVAL_S)
