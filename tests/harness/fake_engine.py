"""A hand-computable engine: every token is an arithmetic function of what lies in the KV blocks.

Position p of a request holds key = token + 1 and value = p + 1, in every layer and head alike. The next token after
position p is

    (sum over q <= p of key[q] * value[q]  +  noise)  mod vocab_size

with noise = 0 for greedy sampling, else seed + 101 * choice + 7 * index. KV that is lost, moved or zeroed therefore
changes the tokens, and `expected_tokens` says what an undisturbed request gives.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from services.common.errors import Internal
from services.common.sampling import SamplingParams
from services.common.times_by_size import TimesBySize
from services.common.types import KvLayout, Token
from services.engine.batch import BatchItem, ItemResult, SampleSpec


@dataclass(frozen=True)
class FakeLimits:
    """Shaped like the real engine's limits."""

    num_blocks: int = 64
    max_model_len: int = 256
    vocab_size: int = 97
    eos_token_ids: tuple[int, ...] = ()
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 64


class FakeKv:
    """KV in one array [layers, 2, heads, blocks, block_size, head_dim]."""

    def __init__(self, layout: KvLayout, num_blocks: int) -> None:
        self.layout = layout
        shape = (layout.num_layers, 2, layout.num_kv_heads, num_blocks, layout.block_size, layout.head_dim)
        self.data = np.zeros(shape, dtype=np.float32)
        self.device = torch.device("cpu")

    def positions(self, block_ids: Sequence[int], start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Block and offset of each position."""
        where = np.arange(start, end)
        return np.asarray(block_ids)[where // self.layout.block_size], where % self.layout.block_size

    def read(self, block_ids: Sequence[int], start: int, end: int, out: torch.Tensor) -> None:
        """As PagedKv.read."""
        blocks, offsets = self.positions(block_ids, start, end)
        out.copy_(torch.from_numpy(np.ascontiguousarray(self.data[:, :, :, blocks, offsets])))

    def write(self, block_ids: Sequence[int], start: int, end: int, data: torch.Tensor) -> None:
        """As PagedKv.write."""
        blocks, offsets = self.positions(block_ids, start, end)
        self.data[:, :, :, blocks, offsets] = data.to(torch.float32).numpy()


class FakeEngine:
    """Engine with the surface that the workers use.

    `gate` (when cleared) holds every step until it is set, so that a test can stop time in any phase; `hold_next`
    clears it at a known step; `poison` names a token id whose items fail alone; `bomb` says with which items a step
    raises, and every later one where `is_deadly`; `on_step` is called with the items of each step on the engine thread.
    """

    def __init__(self, limits: FakeLimits | None = None, *, block_size: int = 4, fingerprint: str = "fake") -> None:
        self.limits = limits or FakeLimits()
        self.layout = KvLayout(
            model_fingerprint=fingerprint,
            dtype="float32",
            num_layers=2,
            num_kv_heads=1,
            head_dim=2,
            block_size=block_size,
        )
        self.kv = FakeKv(self.layout, self.limits.num_blocks)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.poison: int | None = None
        self.bomb: Callable[[BatchItem], bool] | None = None
        self.is_deadly = False
        self.is_dead = False
        self.on_step: Callable[[Sequence[BatchItem]], None] | None = None
        self.steps = 0
        self.step_times = TimesBySize()  # a fake has no speed; a test may say one

    def hold_next(self) -> None:
        """Lets one more step through and holds the one after it, however slow the test is."""

        def close(_: Sequence[BatchItem]) -> None:
            self.on_step = None
            self.gate.clear()

        self.on_step = close

    def step(self, items: Sequence[BatchItem]) -> list[ItemResult]:
        """Computes one step; see the module docstring for the arithmetic."""
        self.entered.release()
        if not self.gate.wait(timeout=60):
            raise AssertionError("the test never opened the gate")
        if self.on_step:
            self.on_step(items)
        self.steps += 1
        has_bomb = self.bomb is not None and any(self.bomb(item) for item in items)
        self.is_dead |= has_bomb and self.is_deadly
        if has_bomb or self.is_dead:
            raise RuntimeError("device lost" if self.is_dead else "a kernel raised")
        for item in items:
            end = item.start + len(item.token_ids)
            blocks, offsets = self.kv.positions(item.block_ids, item.start, end)
            keys = np.asarray(item.token_ids, dtype=np.float32) + 1
            values = np.arange(item.start, end, dtype=np.float32) + 1
            self.kv.data[:, 0, :, blocks, offsets] = keys[:, None, None, None]
            self.kv.data[:, 1, :, blocks, offsets] = values[:, None, None, None]
        return [self._result(item) for item in items]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks, all sources as they were before the first copy."""
        sources = [pair[0] for pair in pairs]
        self.kv.data[:, :, :, [pair[1] for pair in pairs]] = self.kv.data[:, :, :, sources].copy()

    def stats(self) -> dict[str, int]:
        """Steps so far."""
        return {"steps": self.steps}

    def watch(self, report: Callable[..., None]) -> None:
        """It has no other processes that could fail."""

    def close(self) -> None:
        """Nothing to free."""

    def _result(self, item: BatchItem) -> ItemResult:
        if self.poison is not None and self.poison in item.token_ids:
            return ItemResult(error=Internal("NaN logits"))
        end = item.start + len(item.token_ids)
        blocks, offsets = self.kv.positions(item.block_ids, 0, end)
        keys = self.kv.data[-1, 0, 0, blocks, offsets, 0]
        values = self.kv.data[-1, 1, 0, blocks, offsets, 0]
        total = int((keys.astype(np.int64) * values.astype(np.int64)).sum())
        return ItemResult(tuple(self._sample(total, spec) for spec in item.samples))

    def _sample(self, total: int, spec: SampleSpec) -> Token:
        token = (total + _noise(spec.sampling, spec.choice, spec.index)) % self.limits.vocab_size
        if not spec.is_stop_allowed and token in spec.stop_ids:
            token = (token + 1) % self.limits.vocab_size
        return Token(token, spec.index)


def _noise(sampling: SamplingParams, choice: int, index: int) -> int:
    return 0 if sampling.is_greedy else (sampling.seed or 0) + 101 * choice + 7 * index


def expected_tokens(
    prompt: Sequence[int], sampling: SamplingParams, num: int, *, choice: int = 0, vocab: int = 97
) -> list[int]:
    """The first `num` tokens that an undisturbed request gives, stop rules left out."""
    tokens = list(prompt)
    for index in range(num):
        total = sum((token + 1) * (position + 1) for position, token in enumerate(tokens))
        tokens.append((total + _noise(sampling, choice, index)) % vocab)
    return tokens[len(prompt) :]
