"""Workers as the router sees them, idle unless a test says otherwise."""

from typing import Any

from services.common.types import KvLayout, Load, Tier, WorkerInfo
from services.frontend.routing.candidate import Candidate, Sent

LAYOUT = KvLayout(model_fingerprint="m", dtype="float32", num_layers=1, num_kv_heads=1, head_dim=1, block_size=16)


def worker(
    tier: Tier, name: str, *, max_model_len: int = 1024, total_blocks: int = 100, weight: float = 1.0
) -> WorkerInfo:
    """A worker of a tier."""
    return WorkerInfo(
        worker_id=name,
        incarnation="i",
        tier=tier,
        address="127.0.0.1:1",
        model="m",
        layout=LAYOUT,
        max_model_len=max_model_len,
        version="1",
        total_blocks=total_blocks,
        max_num_seqs=8,
        weight=weight,
    )


def candidate(tier: Tier, name: str, load: Load | None = None, sent: Sent = Sent(), **facts: Any) -> Candidate:  # noqa: B008
    """A reachable worker, idle unless said otherwise."""
    seen = {key: facts.pop(key) for key in ("ramp", "known_blocks") if key in facts}
    idle = Load(free_blocks=100, total_blocks=facts.get("total_blocks", 100))
    return Candidate(worker=worker(tier, name, **facts), load=load or idle, unfinished=sent, unreported=sent, **seen)
