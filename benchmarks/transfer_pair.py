"""What both processes of the transfer benchmark must agree on: shape of the KV, names, settings, tickets."""

from dataclasses import dataclass, replace

import torch

from services.common.types import KvLayout, Tier, WorkerInfo
from services.engine.paged_kv import PagedKv
from services.kvtransfer.config import TransferConfig

# 12 KiB a token, as a model of 125 million parameters has it.
LAYOUT = KvLayout(
    model_fingerprint="benchmark",
    dtype="bfloat16",
    num_layers=12,
    num_kv_heads=4,
    head_dim=64,
    block_size=16,
    transports=("gloo",),
)
TOKEN_BYTES = LAYOUT.token_elements * torch.bfloat16.itemsize
SOURCE_ID = "source"
INCARNATION = "benchmark"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCase:
    """One point of the sweep: how large messages are, how much is fetched, and whether it is hashed."""

    message_bytes: int
    fetch_bytes: int
    checksum: bool
    repeats: int
    device: str = "cpu"
    transport: str = "gloo"

    @property
    def layout(self) -> KvLayout:
        """Layout of both sides, which names the transport."""
        return replace(LAYOUT, transports=(self.transport,))

    @property
    def source_environment(self) -> dict[str, str]:
        """What differs for the sending process: NCCL joins no two processes on one GPU."""
        return {"CUDA_VISIBLE_DEVICES": "1"} if self.transport == "nccl" else {}

    @property
    def fetch_tokens(self) -> int:
        """Tokens of a large fetch."""
        return max(1, self.fetch_bytes // TOKEN_BYTES)

    @property
    def message_tokens(self) -> int:
        """Tokens whose KV fills one message; a fetch of so many is one message."""
        return min(max(1, self.message_bytes // TOKEN_BYTES), self.fetch_tokens)

    @property
    def config(self) -> TransferConfig:
        """Settings of either side: staging of two messages, as by default; leases outlast the benchmark."""
        size = max(self.message_bytes, TOKEN_BYTES)
        return TransferConfig(
            checksum=self.checksum,
            max_message_bytes=size,
            staging_bytes=2 * size,
            lease_s=3600.0,
            pin_staging=self.device.startswith("cuda"),
        )

    def ticket_ids(self, tokens: int) -> list[str]:
        """Tickets for fetches of so many tokens, one for each repetition, the first of which warms up."""
        return [f"{tokens}-{index}" for index in range(self.repeats + 1)]


def make_kv(tokens: int, layout: KvLayout = LAYOUT, device: str = "cpu") -> tuple[PagedKv, tuple[int, ...]]:
    """KV for so many tokens, filled with noise, and the block table that covers it."""
    blocks = -(-tokens // layout.block_size)
    heads = (layout.num_layers, 2, layout.num_kv_heads)
    dtype: torch.dtype = getattr(torch, layout.dtype)
    tensor = torch.empty(*heads, blocks, layout.block_size, layout.head_dim, dtype=dtype, device=device).normal_()
    return PagedKv(tensor), tuple(range(blocks))


def worker(worker_id: str, tier: Tier, address: str, layout: KvLayout = LAYOUT) -> WorkerInfo:
    """A side of the pair as the other knows it."""
    return WorkerInfo(
        worker_id=worker_id,
        incarnation=INCARNATION,
        tier=tier,
        address=address,
        model="benchmark",
        layout=layout,
        max_model_len=2**20,
        version="0",
        total_blocks=2**16,
        max_num_seqs=64,
    )


class LaidOutKv:
    """A `KvBlocks`: paged KV with the layout beside it."""

    def __init__(self, kv: PagedKv, layout: KvLayout = LAYOUT) -> None:
        self.layout = layout
        self.read = kv.read
        self.write = kv.write
