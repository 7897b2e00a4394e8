"""Attention in plain torch: KV gathered by `index_select`, query heads grouped per KV head as rows of matmuls.

Runs on any device in any dtype. On CPU it is the fast one too: torch's fused attention was slower at every shape tried,
by 20 times for one query token with grouped heads, by 2 to 3 times for prompts in bfloat16. On CUDA it is what remains
where no kernel is installed; not measured there. Long prompts are worked on in slices of query rows, so scores never
take more than `SLICE_ROWS` rows of memory, and no T×T mask exists.

Stale KV behind a request's last token may hold anything, even NaN that a failed request left. Masked scores are
overwritten rather than added to, and the stale values zeroed, so it cannot reach a result.
"""

from dataclasses import dataclass

import numpy as np
import torch

from services.engine.attention.interface import AttentionBatch, LayerOptions
from services.engine.attention.padding import DecodeGroup, group_decodes

SLICE_ROWS = 64


@dataclass(frozen=True, slots=True)
class _Rectangle:
    """What layers with one window share for one group of one-token requests: rows, gather index, mask, stale rows.

    `index` [2·num_kv_heads·B·blocks] selects rows of the KV seen as [2·num_kv_heads·num_blocks, block_size·head_dim].
    `masked` is [B, 1, S] or None; `stale` indexes rows of gathered values seen as [num_kv_heads·B·S, head_dim].
    """

    first: int
    last: int
    index: torch.Tensor
    masked: torch.Tensor | None
    stale: torch.Tensor | None


class GatherAttention:
    """Serves steps over one KV tensor [num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim]."""

    name = "gather"

    def __init__(self, kv: torch.Tensor) -> None:
        num_layers, _, heads, blocks, block_size, head_dim = kv.shape
        self.num_kv_heads, self.num_blocks, self.block_size, self.head_dim = heads, blocks, block_size, head_dim
        self.blocks = [kv[layer].view(2 * heads * blocks, block_size * head_dim) for layer in range(num_layers)]
        self.keys = [kv[layer, 0].view(-1, head_dim) for layer in range(num_layers)]
        self.values = [kv[layer, 1].view(-1, head_dim) for layer in range(num_layers)]
        self.device = kv.device
        self.head_offsets = torch.arange(heads, device=kv.device)[:, None] * (blocks * block_size)
        self.plane_offsets = np.arange(2 * heads, dtype=np.int64)[:, None] * blocks

    def begin(self, batch: AttentionBatch) -> "GatherStep":
        """Prepares what all layers of a step share."""
        return GatherStep(self, batch)

    def gather_index(self, block_ids: np.ndarray) -> torch.Tensor:
        """Rows of `blocks` that hold these blocks, for keys and values of every head; block_ids is flat int64."""
        return self.to_device((self.plane_offsets + block_ids[None, :]).reshape(-1))

    def to_device(self, array: np.ndarray) -> torch.Tensor:
        """A host array as a tensor where the KV is."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)


class GatherStep:
    """One step; plans are made for the first layer with a given window and shared by the rest."""

    def __init__(self, backend: GatherAttention, batch: AttentionBatch) -> None:
        self._backend = backend
        self._batch = batch
        self._slots: torch.Tensor | None = None
        self._decodes: dict[int | None, list[_Rectangle]] = {}
        self._prompts: dict[tuple[int, int], torch.Tensor] = {}

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """See `AttentionStep.attend`."""
        batch = self._batch
        num_heads, num_tokens, head_dim = query.shape
        self.store(key, value, options.layer_idx)
        out = query.new_empty(num_tokens, num_heads, head_dim)
        self.attend_decodes(query, out, options)
        row = batch.num_decodes
        for item in range(batch.num_decodes, len(batch.query_lens)):
            rows = slice(row, row + batch.query_lens[item])
            row = rows.stop
            self.attend_prompt(item, query[:, rows], key[:, rows], value[:, rows], out[rows], options)
        return out

    def store(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> None:
        """Puts the step's keys and values [num_kv_heads, T, head_dim] where the KV wants them."""
        backend = self._backend
        if self._slots is None:
            self._slots = (backend.head_offsets + self._batch.slot_mapping[None, :]).reshape(-1)
        backend.keys[layer].index_copy_(0, self._slots, key.reshape(-1, backend.head_dim))
        backend.values[layer].index_copy_(0, self._slots, value.reshape(-1, backend.head_dim))

    def attend_decodes(self, query: torch.Tensor, out: torch.Tensor, options: LayerOptions) -> None:
        """The one-token requests: the first rows of query [num_heads, T, head_dim] to those of `out`."""
        for group in self._gathered(options.sliding_window):
            out[group.first : group.last] = self._decode(query[:, group.first : group.last], group, options)

    def attend_prompt(
        self,
        item: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        options: LayerOptions,
    ) -> None:
        """Tokens of one request: [num_heads, n, head_dim] to [n, num_heads, head_dim]; key and value are new."""
        keys, values = self._history(item, key, value, options)
        attend_causal(query, keys, values, options, out)

    def _decode(self, query: torch.Tensor, group: _Rectangle, options: LayerOptions) -> torch.Tensor:
        """One query token each: [num_heads, B, head_dim] to [B, num_heads, head_dim]."""
        heads, head_dim = self._backend.num_kv_heads, self._backend.head_dim
        num_heads, count, _ = query.shape
        gathered = self._backend.blocks[options.layer_idx].index_select(0, group.index)
        keys, values = gathered.view(2, heads, count, -1, head_dim).unbind(0)
        if group.stale is not None:
            values.view(-1, head_dim).index_fill_(0, group.stale, 0)
        grouped = query.reshape(heads, num_heads // heads, count, head_dim).transpose(1, 2)
        scores = _bend(torch.matmul(grouped, keys.transpose(-1, -2)).mul_(options.scale), options.softcap)
        if group.masked is not None:
            scores.masked_fill_(group.masked, float("-inf"))
        mixed = torch.matmul(scores.softmax(-1), values)
        return mixed.transpose(0, 1).reshape(count, num_heads, head_dim)

    def _history(
        self, item: int, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values up to a prompt's last token, from the first block on that its window touches.

        Straight from the step where nothing came before it.
        """
        batch, backend = self._batch, self._backend
        length = batch.cache_seqlens[item]
        history = length - batch.query_lens[item]
        if not history:
            return key, value
        window = options.sliding_window
        first_block = 0 if window is None else max(0, history + 1 - window) // backend.block_size
        index = self._prompts.get((item, first_block))
        if index is None:
            index = backend.gather_index(np.asarray(batch.block_table[item][first_block:], dtype=np.int64))
            self._prompts[item, first_block] = index
        gathered = backend.blocks[options.layer_idx].index_select(0, index)
        count = length - first_block * backend.block_size
        keys, values = gathered.view(2, backend.num_kv_heads, -1, backend.head_dim)[:, :, :count].unbind(0)
        return keys, values

    def _gathered(self, window: int | None) -> list[_Rectangle]:
        plans = self._decodes.get(window)
        if plans is None:
            count = self._batch.num_decodes
            lengths = np.asarray(self._batch.cache_seqlens[:count], dtype=np.int64)
            tables = self._batch.block_table[:count]
            groups = group_decodes(lengths, tables, self._backend.block_size, window)
            plans = self._decodes[window] = [self._plan(group) for group in groups]
        return plans

    def _plan(self, group: DecodeGroup) -> _Rectangle:
        stale_rows, to_device = np.flatnonzero(group.stale), self._backend.to_device
        planes = np.arange(self._backend.num_kv_heads, dtype=np.int64)[:, None] * group.stale.size
        return _Rectangle(
            first=group.first,
            last=group.last,
            index=self._backend.gather_index(group.blocks.reshape(-1)),
            masked=to_device(group.masked)[:, None, :] if group.masked.any() else None,
            stale=to_device((planes + stale_rows[None, :]).reshape(-1)) if stale_rows.size else None,
        )


def attend_causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions, out: torch.Tensor
) -> None:
    """Causal attention of the last n positions of a sequence of S, into `out`.

    Args:
        query: [num_heads, n, head_dim].
        key: [num_kv_heads, S, head_dim]; S >= n, aligned at the end.
        value: [num_kv_heads, S, head_dim].
        options: The layer's own numbers.
        out: [n, num_heads, head_dim], written.
    """
    num_heads, num_rows, head_dim = query.shape
    heads, history = key.shape[0], key.shape[1] - num_rows
    grouped = query.reshape(heads, num_heads // heads, num_rows, head_dim)
    out_grouped = out.view(num_rows, heads, num_heads // heads, head_dim)
    for first in range(0, num_rows, SLICE_ROWS):
        rows = slice(first, min(first + SLICE_ROWS, num_rows))
        count, end = rows.stop - first, history + rows.stop
        begin = 0 if options.sliding_window is None else max(0, history + first + 1 - options.sliding_window)
        stacked = grouped[:, :, rows].reshape(heads, -1, head_dim)
        scores = torch.matmul(stacked, key[:, begin:end].transpose(-1, -2)).mul_(options.scale)
        scores = _bend(scores, options.softcap).view(heads, -1, count, end - begin)
        _mask_rows(scores, options.sliding_window)
        weights = scores.softmax(-1).view(heads, -1, end - begin)
        mixed = torch.matmul(weights, value[:, begin:end]).view(heads, -1, count, head_dim)
        out_grouped[rows] = mixed.permute(2, 0, 1, 3)


def _mask_rows(scores: torch.Tensor, window: int | None) -> None:
    """Hides later keys, and those that have left the window; the last row sees the last key."""
    count, keys = scores.shape[-2:]
    last_seen = torch.arange(keys - count, keys, device=scores.device)[:, None]
    if window is None or window >= keys:
        scores[..., keys - count :].masked_fill_(last_seen < last_seen.T, float("-inf"))
        return
    positions = torch.arange(keys, device=scores.device)[None, :]
    scores.masked_fill_((positions > last_seen) | (positions <= last_seen - window), float("-inf"))


def _bend(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)
