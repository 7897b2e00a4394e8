"""The engine's KV as the transfer library sees it."""

from collections.abc import Sequence

from torch import Tensor

from services.common.types import KvLayout
from services.engine.engine import Engine


class EngineKv:
    """Reads and writes the KV of an engine by token range; satisfies `kvtransfer.kv_blocks.KvBlocks`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def layout(self) -> KvLayout:
        """Shape and element type of the KV."""
        return self._engine.layout

    def read(self, block_ids: Sequence[int], start: int, end: int, out: Tensor) -> None:
        """Copies token positions [start, end) into `out`: [layers, 2, kv_heads, end - start, head_dim]."""
        self._engine.kv.read(block_ids, start, end, out)

    def write(self, block_ids: Sequence[int], start: int, end: int, data: Tensor) -> None:
        """Copies `data`, shaped as `read` gives it, into token positions [start, end)."""
        self._engine.kv.write(block_ids, start, end, data)
