"""How long the schedulers take to plan a step, by how many requests wait in their queues. No process, no engine."""

import statistics
import time
from collections.abc import Callable

from services.decode.plan import Run
from services.decode.scheduler import DecodeScheduler
from services.engine.blocks import BlockPool
from services.prefill.ahead import Ahead
from services.prefill.prompt import Prompt
from services.prefill.scheduler import PrefillScheduler

RUNNING = 64
_PROMPT_TOKENS = 64
_BLOCK_SIZE = 16
_REPEATS = 50
_TOKEN = 17


def scheduler_row(queued: int) -> dict[str, float]:
    """Median times in microseconds with so many requests waiting and no room for any of them.

    `decode_step_us` plans and commits a step of a full running batch. `prefill_plan_us` finds no room for prompts that
    a decode worker awaits, `prefill_ahead_plan_us` for prompts that nobody awaits yet: one block is left, so each of
    these is looked at. `submit_us` queues one more.
    """
    return {
        "queued": queued,
        "decode_step_us": _decode_step_us(queued),
        "prefill_plan_us": _prefill_plan_us(queued, is_awaited=True),
        "prefill_ahead_plan_us": _prefill_plan_us(queued, is_awaited=False),
        "submit_us": _submit_us(queued),
    }


def _decode_step_us(queued: int) -> float:
    scheduler = _decode_scheduler()
    for key in range(RUNNING):
        scheduler.submit(_run(key))
    for share in scheduler.plan().shares:
        scheduler.commit(share)
        scheduler.fork(share.run, {0: _TOKEN})
    for key in range(RUNNING, RUNNING + queued):
        scheduler.submit(_run(key))

    def step() -> None:
        for share in scheduler.plan().shares:
            scheduler.commit(share)
            share.run.tokens.append(_TOKEN)

    return _median_us(step)


def _prefill_plan_us(queued: int, *, is_awaited: bool) -> float:
    blocks = _PROMPT_TOKENS // _BLOCK_SIZE
    pool = BlockPool(blocks + 1, _BLOCK_SIZE)
    scheduler = PrefillScheduler(
        pool, max_num_seqs=RUNNING, max_num_batched_tokens=2048, ahead=Ahead(prompts=2, blocks=blocks)
    )
    # The first one takes all blocks but one and keeps them, as one whose KV is being fetched does.
    scheduler.submit(_prompt(0, is_awaited=True))
    for chunk in scheduler.plan():
        scheduler.commit(chunk)
    for key in range(1, queued + 1):
        scheduler.submit(_prompt(key, is_awaited=is_awaited))
    return _median_us(scheduler.plan)


def _submit_us(queued: int) -> float:
    scheduler = _decode_scheduler()
    for key in range(queued):
        scheduler.submit(_run(key))
    runs = iter([_run(queued + key) for key in range(_REPEATS + 1)])
    return _median_us(lambda: scheduler.submit(next(runs)))


def _decode_scheduler() -> DecodeScheduler:
    pool = BlockPool(2**14, _BLOCK_SIZE)
    return DecodeScheduler(pool, max_num_seqs=RUNNING, max_num_batched_tokens=RUNNING * _PROMPT_TOKENS)


def _run(key: int) -> Run:
    return Run(key=key, tokens=[key + 1] * _PROMPT_TOKENS, num_prompt=_PROMPT_TOKENS, rank=float(key))


def _prompt(key: int, *, is_awaited: bool) -> Prompt:
    return Prompt(key=key, token_ids=[key + 1] * _PROMPT_TOKENS, rank=float(key), is_awaited=is_awaited)


def _median_us(work: Callable[[], object]) -> float:
    """Median time of a call; the first one does not count."""
    times: list[float] = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) * 1e6
