"""The engine: a model over paged KV, driven one step at a time.

It is told what to feed where and which blocks hold what; it decides nothing about requests and validates nothing that
clients send. Thread: every method belongs to one thread, except `kv.read` and `kv.write`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from services.common.checkpoint import read_model_facts
from services.common.times_by_size import TimesBySize
from services.common.types import KvLayout
from services.engine.attention.select import choose_backend, default_block_size
from services.engine.batch import BatchItem, ItemResult
from services.engine.config import EngineConfig
from services.engine.fingerprint import model_fingerprint
from services.engine.graph_runner import GraphRunner
from services.engine.heap import keep_freed_memory
from services.engine.load import LoadedModel, dtype_name, load_model
from services.engine.memory import choose_num_blocks
from services.engine.packing import pack_step
from services.engine.paged_kv import PagedKv
from services.engine.runner import Runner
from services.engine.runners import make_runner, num_spare_blocks
from services.engine.sampler import Largest, find_largest, sample_rows
from services.engine.support import longest_context
from services.engine.tensor_parallel.link import RankLost
from services.engine.tensor_parallel.ranks import Ranks, own_config, start_ranks
from services.engine.tensor_parallel.runner import ShardedRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What schedulers must keep to."""

    num_blocks: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_num_seqs: int
    max_num_batched_tokens: int


class Engine:
    """A loaded model, its KV, and one call that advances a batch.

    `step_times` has what steps lately took, by size; `attention` is the name of the attention backend.
    """

    def __init__(
        self,
        runner: Runner | GraphRunner | ShardedRunner,
        kv: PagedKv,
        layout: KvLayout,
        limits: EngineLimits,
        ranks: Ranks | None = None,
        find: Largest = find_largest,
    ) -> None:
        self.layout = layout
        self.limits = limits
        self.kv = kv
        self.step_times = TimesBySize()
        self.attention = runner.attention
        self._runner: Runner | GraphRunner | ShardedRunner | None = runner
        self._ranks = ranks
        self._find_largest = find
        self._steps = self._fed = self._sampled = self._failed = 0

    @torch.inference_mode()
    def step(self, items: Sequence[BatchItem]) -> list[ItemResult]:
        """Feeds every item's tokens in one forward pass and samples where samples are wanted.

        Returns:
            One result per item, in order; an item whose logits are no numbers has an error, the others their tokens.

        Raises:
            ValueError: an item feeds no token, or has too few blocks for its tokens; nothing was computed.
            RuntimeError: the engine is closed.
            RankLost: a rank that has a part of the model is gone; the engine cannot step again.
        """
        if self._runner is None:
            raise RuntimeError("the engine is closed; load another")
        if not items:
            return []
        started = time.monotonic_ns()
        # A thread learns how many threads torch may use only when it asks; oneDNN does not ask and would start its own.
        torch.get_num_threads()
        packed = pack_step(items, self.layout.block_size, self.kv.device)
        try:
            logits = self._runner.forward(packed)
        finally:
            self.kv.mark()  # also what a failed step has begun may still run on a device
        results = [ItemResult()] * len(items)
        sampled = sample_rows(logits, [items[index].samples for index in packed.sampled], self._find_largest)
        for index, result in zip(packed.sampled, sampled, strict=True):
            results[index] = result
        self._count(items, sampled)
        if sampled:  # else a device may still be at work
            self.step_times.add(sum(len(item.token_ids) for item in items), time.monotonic_ns() - started)
        return results

    @torch.inference_mode()
    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks of all layers, (source, target) each; all sources are read before any target is written.

        Raises:
            ValueError: a block id is out of range.
        """
        self.kv.copy_blocks(pairs)

    def stats(self) -> dict[str, int]:
        """Steps, those of them replayed from graphs, tokens fed and sampled, items that failed, and bytes of KV."""
        replayed = {"replayed_steps": self._runner.replayed} if isinstance(self._runner, GraphRunner) else {}
        return {
            "steps": self._steps,
            **replayed,
            "fed_tokens": self._fed,
            "sampled_tokens": self._sampled,
            "failed_items": self._failed,
            "kv_bytes": self.kv.num_bytes,
            **({} if self._ranks is None else self._ranks.stats()),
        }

    def watch(self, report: Callable[[RankLost], None]) -> None:
        """Reports, once and on any thread, that a rank is gone, also while nothing steps."""
        if self._ranks is not None:
            self._ranks.watch(report)

    def close(self) -> None:
        """Drops the model and ends the other ranks; the engine cannot step again.

        KV stays until its last reader drops it. Takes seconds where a rank does not end by itself. Idempotent.
        """
        self._runner = None
        if self._ranks is not None:
            self._ranks.close()

    def _count(self, items: Sequence[BatchItem], sampled: Sequence[ItemResult]) -> None:
        self._steps += 1
        self._fed += sum(len(item.token_ids) for item in items)
        self._sampled += sum(len(result.tokens) for result in sampled)
        self._failed += sum(result.error is not None for result in sampled)


def load_engine(config: EngineConfig, progress: Callable[[str], None] | None = None) -> Engine:
    """Loads a checkpoint and allocates its KV; `progress` is told what happens, a line at a time.

    Raises:
        ConfigError: the checkpoint, the device or the memory does not allow it; says what to change.
    """
    report = progress or _ignore
    keep_freed_memory()
    if config.tensor_parallel == 1:
        return _load(config, report, None)
    ranks = start_ranks(config)  # they load while this one does
    try:
        return _load(own_config(config, 0), report, ranks)
    except BaseException:
        ranks.close()
        raise


def _load(config: EngineConfig, report: Callable[[str], None], ranks: Ranks | None) -> Engine:
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    facts = read_model_facts(config.checkpoint)
    loaded = load_model(config, report)
    max_model_len = longest_context(loaded.config, facts.max_position, config.max_model_len)
    backend = choose_backend(
        config.attention, loaded.device, loaded.dtype, loaded.shape.layers, config.block_size, loaded.kernels
    )
    block_size = config.block_size or default_block_size(backend.name)
    if ranks is not None:
        ranks.await_loaded(loaded.facts)
    spare_blocks = num_spare_blocks(config, backend.name)
    kv = _allocate(config, loaded, block_size, max_model_len, ranks, spare_blocks)
    for reason in backend.passed_over:
        report(f"attention is not {reason}")
    report(f"attention {backend.name}, {kv.num_blocks} KV blocks of {block_size} tokens, {kv.num_bytes >> 20} MiB")
    limits = EngineLimits(
        num_blocks=kv.num_blocks - spare_blocks,
        max_model_len=max_model_len,
        vocab_size=loaded.shape.vocab_size,
        eos_token_ids=tuple(token for token in facts.eos_token_ids if token < loaded.shape.vocab_size),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )
    runner = make_runner(config, loaded, kv, max_model_len, backend.name, report)
    layout = _layout(config, loaded, block_size)
    find = find_largest if loaded.kernels is None else loaded.kernels.largest
    if ranks is None:
        return Engine(runner, kv, layout, limits, find=find)
    group = loaded.group_slot.group = ranks.join(kv.tensor.shape, layout.dtype, backend.name)
    return Engine(ShardedRunner(runner, group), kv, layout, limits, ranks, find)


def _allocate(
    config: EngineConfig,
    loaded: LoadedModel,
    block_size: int,
    max_model_len: int,
    ranks: Ranks | None,
    spare_blocks: int,
) -> PagedKv:
    shape = loaded.shape
    token_elements = shape.num_layers * 2 * shape.num_kv_heads * shape.head_dim * config.tensor_parallel
    num_blocks = choose_num_blocks(
        config,
        block_bytes=token_elements * block_size * loaded.dtype.itemsize,
        block_size=block_size,
        max_model_len=max_model_len,
        device=loaded.device,
    )
    dims = (shape.num_layers, 2, shape.num_kv_heads, num_blocks + spare_blocks, block_size, shape.head_dim)
    if ranks is not None:
        return PagedKv(*ranks.map_kv(dims, loaded.dtype))
    return PagedKv(torch.zeros(dims, dtype=loaded.dtype, device=loaded.device))


def _layout(config: EngineConfig, loaded: LoadedModel, block_size: int) -> KvLayout:
    return KvLayout(
        model_fingerprint=model_fingerprint(config.checkpoint, config.quantization),
        dtype=dtype_name(loaded.dtype),
        num_layers=loaded.shape.num_layers,
        num_kv_heads=loaded.shape.num_kv_heads * config.tensor_parallel,
        head_dim=loaded.shape.head_dim,
        block_size=block_size,
        tensor_parallel=config.tensor_parallel,
        transports=("nccl", "gloo") if loaded.device.type == "cuda" else ("gloo",),
    )


def _ignore(line: str) -> None:
    del line
