"""Measures the steps of a fresh engine, which warms it up as well.

A decode worker feeds a few tokens a step, so nothing that it does later tells what a prompt would take there.
"""

import time
from typing import TYPE_CHECKING

from services.common.sampling import SamplingParams
from services.common.times_by_size import ENOUGH
from services.engine.batch import BatchItem, SampleSpec

if TYPE_CHECKING:
    from services.engine.engine import Engine

SIZES = (1, 4, 16, 64, 256)
# Of a slow model only small steps are measured; what lies beyond is taken to be in proportion.
BUDGET_S = 1.0

_GREEDY = SampleSpec(sampling=SamplingParams(temperature=0.0), choice=0, index=0)


def warm_up(engine: "Engine", budget_s: float = BUDGET_S) -> None:
    """Runs steps of growing size, each often enough to be known, until all are or the time is up.

    To be called before anything has KV: blocks are written at will.
    """
    limits, block_size = engine.limits, engine.layout.block_size
    most = min(limits.max_num_batched_tokens, limits.max_model_len, limits.num_blocks * block_size)
    until = time.monotonic() + budget_s
    for size in (size for size in SIZES if size <= most):
        blocks = range(-(-size // block_size))
        item = BatchItem(token_ids=(0,) * size, start=0, block_ids=blocks, samples=(_GREEDY,))
        for _ in range(ENOUGH):
            engine.step([item])
        if time.monotonic() >= until:
            return
