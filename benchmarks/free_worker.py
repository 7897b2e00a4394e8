"""A decode process whose engine costs nothing, for measuring what is left: python -m benchmarks.free_worker FLAGS.

Each token is the same one, and a step takes as long as `BATON_BENCH_STEP_MS` says: 0 for as fast as the process goes.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence

import torch

from services.common.checkpoint import read_model_facts
from services.common.types import KvLayout, Token
from services.decode.__main__ import main
from services.engine.batch import BatchItem, ItemResult
from services.engine.config import EngineConfig
from services.engine.engine import Engine, EngineLimits
from services.engine.paged_kv import PagedKv
from services.worker import loading

STEP_MS = "BATON_BENCH_STEP_MS"
FINGERPRINT = "free"

_TOKEN = 17
_BLOCK_SIZE = 16
_NUM_BLOCKS = 2**15


class _NoModel:
    """Stands where a runner would; steps never come to it."""

    attention = "none"


class FreeEngine(Engine):
    """An engine without a model; its KV is one number a token, and is never touched."""

    def __init__(self, config: EngineConfig, step_s: float) -> None:
        facts = read_model_facts(config.checkpoint)
        layout = KvLayout(
            model_fingerprint=FINGERPRINT,
            dtype="float32",
            num_layers=1,
            num_kv_heads=1,
            head_dim=1,
            block_size=_BLOCK_SIZE,
        )
        limits = EngineLimits(
            num_blocks=_NUM_BLOCKS,
            max_model_len=facts.max_position,
            vocab_size=facts.vocab_size,
            eos_token_ids=facts.eos_token_ids,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        kv = PagedKv(torch.zeros(1, 2, 1, _NUM_BLOCKS, _BLOCK_SIZE, 1))
        super().__init__(_NoModel(), kv, layout, limits)  # type: ignore[arg-type]
        self._step_s = step_s

    def step(self, items: Sequence[BatchItem]) -> list[ItemResult]:
        """Gives every sample the same token."""
        if self._step_s:
            time.sleep(self._step_s)
        return [ItemResult(tuple(Token(_TOKEN, sample.index) for sample in item.samples)) for item in items]


def load_free_engine(config: EngineConfig, progress: Callable[[str], None] | None = None) -> FreeEngine:
    """Stands for `load_engine`."""
    del progress
    return FreeEngine(config, float(os.environ.get(STEP_MS, "0")) / 1e3)


if __name__ == "__main__":
    loading.load_engine = load_free_engine
    sys.exit(main(sys.argv[1:]))
