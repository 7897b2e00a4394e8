"""Runs one packed step on all ranks of a worker: each through its own part of the model.

A step that raises on one rank is given up by all, and the next one may run: the caller can find out whose fault it was,
as with one rank.
"""

from collections.abc import Callable

import torch

from services.common.log import get_logger
from services.engine.graph_runner import GraphRunner
from services.engine.packing import PackedStep
from services.engine.runner import Runner
from services.engine.tensor_parallel.group import RankGroup
from services.engine.tensor_parallel.link import RankLost
from services.engine.tensor_parallel.step_message import decode_step, encode_step

_log = get_logger(__name__)


class ShardedRunner:
    """Rank 0's runner: as `Runner`, over the whole model. Thread: one, the engine's."""

    def __init__(self, runner: Runner | GraphRunner, group: RankGroup) -> None:
        self._runner = runner
        self._group = group

    @property
    def attention(self) -> str:
        """Name of the attention backend."""
        return self._runner.attention

    def forward(self, packed: PackedStep) -> torch.Tensor:
        """Logits as of `Runner.forward`.

        Raises:
            RankLost: a rank died, hangs or is out of step; no later step can run.
            StepAbandoned: another rank raised; its log says what.
        """

        def run() -> torch.Tensor:
            self._group.begin(encode_step(packed))
            return self._runner.forward(packed)

        return _together(self._group, run)


def follow(runner: Runner, group: RankGroup) -> None:
    """Runs what rank 0 begins, on any other rank, until rank 0 closes.

    Raises:
        RankLost: another rank is gone or out of step.
    """
    while (message := group.next_step()) is not None:
        try:
            with torch.inference_mode():
                _together(group, lambda step=message: runner.forward(decode_step(step)))
        except RankLost:
            raise
        except Exception as error:  # noqa: BLE001 - rank 0 knows that it failed, and decides what becomes of it
            _log.error("rank_step_failed", rank=group.rank, exc_info=error)


def _together(group: RankGroup, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Runs a rank's part; where it fails, all ranks give the step up before the error is raised."""
    try:
        return run()
    except RankLost:
        group.close()
        raise
    except Exception:
        _abandon(group)
        raise


def _abandon(group: RankGroup) -> None:
    try:
        group.abandon()
    except RankLost:
        group.close()
        raise
