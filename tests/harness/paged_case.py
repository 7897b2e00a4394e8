"""Random packed batches over paged KV, for tests of attention backends."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.engine.attention.interface import AttentionBackend, LayerOptions
from services.engine.batch import BatchItem
from services.engine.packing import pack_step
from tests.harness.attention_reference import attend_reference


@dataclass
class PagedCase:
    """Requests of (history, fed) tokens over a KV tensor whose unused places hold NaN."""

    kv: torch.Tensor
    items: list[BatchItem]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    query: torch.Tensor

    @classmethod
    def random(
        cls,
        sizes: Sequence[tuple[int, int]],
        *,
        num_heads: int = 6,
        num_kv_heads: int = 2,
        head_dim: int = 8,
        block_size: int = 8,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        seed: int = 0,
    ) -> "PagedCase":
        """Draws a batch; items of one token must come first, shorter ones before longer ones, as the packing wants."""
        rng = torch.Generator().manual_seed(seed)
        counts = [-(-(history + fed) // block_size) for history, fed in sizes]
        order = torch.randperm(sum(counts) + 2, generator=rng).tolist()
        kv = torch.full((2, 2, num_kv_heads, len(order), block_size, head_dim), float("nan"), dtype=dtype)
        items, keys, values = [], [], []
        for (history, fed), count in zip(sizes, counts, strict=True):
            blocks, order = order[:count], order[count:]
            pair = torch.randn(2, num_kv_heads, history + fed, head_dim, generator=rng).to(dtype)
            for position in range(history):
                kv[1, :, :, blocks[position // block_size], position % block_size] = pair[:, :, position]
            items.append(BatchItem(token_ids=[0] * fed, start=history, block_ids=blocks))
            keys.append(pair[0].to(device))
            values.append(pair[1].to(device))
        query = torch.randn(num_heads, sum(fed for _, fed in sizes), head_dim, generator=rng).to(dtype)
        return cls(kv.to(device), items, keys, values, query.to(device))

    def run(self, backend: AttentionBackend, options: LayerOptions) -> torch.Tensor:
        """What the backend makes of it, [T, num_heads, head_dim]."""
        packed = pack_step(self.items, self.kv.shape[4], self.kv.device)
        assert packed.attention.query_lens == self.query_lens
        fed = [slice(item.start, None) for item in self.items]
        key = torch.cat([key[:, rows] for key, rows in zip(self.keys, fed, strict=True)], 1)
        value = torch.cat([value[:, rows] for value, rows in zip(self.values, fed, strict=True)], 1)
        return backend.begin(packed.attention).attend(self.query, key, value, options)

    def expected(self, options: LayerOptions) -> torch.Tensor:
        """What the formula says, float64."""
        return attend_reference(self.query, self.query_lens, self.keys, self.values, options)

    @property
    def query_lens(self) -> tuple[int, ...]:
        """Tokens each request feeds."""
        return tuple(len(item.token_ids) for item in self.items)

    def only(self, index: int) -> "PagedCase":
        """The same KV with one of its requests."""
        first = sum(len(item.token_ids) for item in self.items[:index])
        rows = slice(first, first + len(self.items[index].token_ids))
        return PagedCase(self.kv, [self.items[index]], [self.keys[index]], [self.values[index]], self.query[:, rows])

    def rest(self, skipped: int) -> "PagedCase":
        """Its first request without the first tokens that it fed, which must be in KV by now."""
        item = self.items[0]
        later = BatchItem(token_ids=item.token_ids[skipped:], start=item.start + skipped, block_ids=item.block_ids)
        return PagedCase(self.kv, [later], self.keys, self.values, self.query[:, skipped:])
