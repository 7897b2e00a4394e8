"""Workers as plain data, for tests of whoever keeps track of them."""

import dataclasses

from services.common.types import KvLayout, Tier, WorkerInfo

LAYOUT = KvLayout(
    model_fingerprint="sha256:demo", dtype="float32", num_layers=2, num_kv_heads=2, head_dim=16, block_size=16
)


def worker_info(worker_id: str, tier: Tier = Tier.PREFILL, *, incarnation: str = "i1", **layout: object) -> WorkerInfo:
    """A worker of the demo model; `layout` changes single fields of its KV layout."""
    return WorkerInfo(
        worker_id=worker_id,
        incarnation=incarnation,
        tier=tier,
        address="127.0.0.1:9100",
        model="demo",
        layout=dataclasses.replace(LAYOUT, **layout),
        max_model_len=1024,
        version="0.1.0",
        total_blocks=64,
        max_num_seqs=8,
    )
