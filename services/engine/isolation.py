"""Runs a step so that a request for which the model raises fails alone.

A step can be run again: positions get the same keys and values, and a sample's random number is keyed. So a step that
raised is run in halves until those are found that raise by themselves. Before that the engine must still be able to run
a token that is nobody's: after some errors (of a GPU above all) it never can again. Thread: the engine's.
"""

from collections.abc import Sequence
from typing import Protocol

from services.common.errors import BatonError, PeerUnreachable, StepFailed
from services.common.log import get_logger
from services.engine.batch import BatchItem, ItemResult
from services.engine.blocks import BlockPool
from services.engine.tensor_parallel.link import RankLost

_log = get_logger(__name__)


class Steps(Protocol):
    """What runs steps; an `Engine`."""

    def step(self, items: Sequence[BatchItem]) -> list[ItemResult]:
        """As `Engine.step`."""
        ...


def step_apart(engine: Steps, pool: BlockPool, items: Sequence[BatchItem]) -> list[ItemResult]:
    """One result per item, in order; items for which the model raises have a `StepFailed`, the others their tokens.

    Raises:
        Exception: what the step raised, where the engine cannot go on at all.
    """
    try:
        return engine.step(items)
    except Exception as error:
        if not _still_runs(engine, pool):
            raise
        return _in_halves(engine, items, error)


def step_failed(error: Exception) -> BatonError:
    """What a request is told that was in a step that raised; details are for the log alone."""
    if isinstance(error, RankLost):  # no request's fault
        return PeerUnreachable("a process of the worker's engine is gone and the worker ends; use another worker")
    return StepFailed(f"the model raised {type(error).__name__} in a step with this request; another worker may run it")


def _in_halves(engine: Steps, items: Sequence[BatchItem], error: Exception) -> list[ItemResult]:
    if len(items) == 1:
        _log.error("step_failed_for_one", fed_tokens=len(items[0].token_ids), start=items[0].start, exc_info=error)
        return [ItemResult(error=step_failed(error))]
    middle = len(items) // 2
    return [*_again(engine, items[:middle]), *_again(engine, items[middle:])]


def _again(engine: Steps, items: Sequence[BatchItem]) -> list[ItemResult]:
    try:
        return engine.step(items)
    except Exception as error:  # noqa: BLE001 - it becomes the error of those whose fault it is
        return _in_halves(engine, items, error)


def _still_runs(engine: Steps, pool: BlockPool) -> bool:
    """Runs one token that is nobody's. Where no block is free for it, the next step that fails will tell."""
    if not pool.num_available:
        return True
    blocks = pool.allocate(1)
    try:
        engine.step([BatchItem(token_ids=(0,), start=0, block_ids=blocks)])
    except Exception:  # noqa: BLE001 - the caller raises what came first
        return False
    finally:
        pool.release(blocks)
    return True
