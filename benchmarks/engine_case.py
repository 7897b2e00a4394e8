"""An engine without a service around it, and what its benchmarks share: block tables, counts of the model."""

import argparse
import math
from collections.abc import Sequence

import torch

from benchmarks.weights import WeightCounts, count_weights
from services.common.checkpoint import resolve_checkpoint
from services.common.config import ConfigError
from services.common.sampling import SamplingParams
from services.engine.batch import BatchItem, ItemResult, SampleSpec
from services.engine.config import EngineConfig
from services.engine.engine import Engine, load_engine
from services.engine.support import read_config

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


class EngineCase:
    """A loaded engine with KV for `max_batch` requests of `max_tokens`; its KV holds noise instead of prompts.

    Raises:
        ConfigError: there is no such checkpoint, or it or the memory does not allow it.
    """

    def __init__(self, options: argparse.Namespace, max_batch: int, max_tokens: int, step_tokens: int) -> None:
        checkpoint = resolve_checkpoint(options.model)
        config = EngineConfig(
            checkpoint=checkpoint,
            dtype=options.dtype,
            device=options.device,
            max_model_len=max_tokens,
            max_num_seqs=max_batch,
            max_num_batched_tokens=max(max_batch, step_tokens),
            num_threads=options.threads,
            quantization=options.quantization,
            native_kernels=not options.torch_only,
            cuda_graphs=options.cuda_graphs,
        )
        self._config = config
        self.engine: Engine = load_engine(config)
        self.dtype = self.engine.kv.tensor.dtype
        self.device = self.engine.kv.device
        self.weights: WeightCounts = count_weights(checkpoint, self.engine.limits.vocab_size)
        self.num_heads: int = read_config(checkpoint).get_text_config().num_attention_heads
        self.engine.kv.tensor.normal_()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices that a step reads."""
        size = 1 if self._config.quantization == "int8" else self.dtype.itemsize
        return (self.weights.matrices + self.weights.head) * size

    def block_tables(self, batch: int, tokens: int) -> list[list[int]]:
        """Blocks of their own for each request.

        Raises:
            ConfigError: there are not enough.
        """
        each = math.ceil(tokens / self.engine.layout.block_size)
        if batch * each > self.engine.limits.num_blocks:
            wanted = f"{batch} requests of {tokens} tokens take {batch * each} KV blocks"
            raise ConfigError(f"{wanted}, there is memory for {self.engine.limits.num_blocks}; ask for less")
        return [list(range(index * each, (index + 1) * each)) for index in range(batch)]

    def feed(self, items: Sequence[BatchItem]) -> list[ItemResult]:
        """One step; results are on the host when it returns.

        Raises:
            RuntimeError: an item failed.
        """
        results = self.engine.step(items)
        failed = next((result.error for result in results if result.error is not None), None)
        if failed is not None:
            raise RuntimeError("the engine could not sample") from failed
        return results

    def describe(self) -> dict[str, object]:
        """What was measured, for the report."""
        layout = self.engine.layout
        return {
            "fingerprint": layout.model_fingerprint,
            "dtype": layout.dtype,
            "device": self.device.type,
            "quantization": self._config.quantization,
            "native_kernels": self._config.native_kernels,
            "attention": self.engine.attention,
            "cuda_graphs": self._config.cuda_graphs,
            "threads": torch.get_num_threads(),
            "block_size": layout.block_size,
            "matrix_elements": self.weights.matrices,
            "head_elements": self.weights.head,
            "kv_bytes_per_token": layout.token_elements * self.dtype.itemsize,
        }


def one_sample(index: int) -> tuple[SampleSpec, ...]:
    """Asks for the most likely next token."""
    return (SampleSpec(sampling=GREEDY, choice=0, index=index),)
