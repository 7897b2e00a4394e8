"""Which prompts a prefill worker takes. Pure: reads limits, changes nothing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.common.errors import KvPoolFull
from services.common.types import WorkRequest
from services.common.validation import check_work_request
from services.engine.blocks import BlockPool
from services.prefill.ahead import Ahead
from services.prefill.scheduler import PrefillScheduler

if TYPE_CHECKING:
    from services.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLimits:
    """Bounds of a prefill worker; requests beyond them are shed."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_queued_requests: int
    max_queued_tokens: int
    prompts_ahead: int
    queue_ttl_s: float
    priority_aging_s: float
    prefix_caching: bool = True

    @property
    def max_live(self) -> int:
        """Prompts that the worker knows at once, waiting ones included."""
        return self.max_queued_requests + self.max_num_seqs

    def has_room(self, num_prompts: int, num_tokens: int) -> bool:
        """Whether the worker may know so many prompts at once, of so many tokens; for one there is, however long."""
        return num_prompts <= 1 or (num_prompts <= self.max_live and num_tokens <= self.max_queued_tokens)

    def scheduler(self, pool: BlockPool, engine: "Engine") -> PrefillScheduler:
        """A scheduler within these bounds; prompts run ahead of decode as far as leaves room for the largest one."""
        largest = -(-engine.limits.max_model_len // engine.layout.block_size)
        return PrefillScheduler(
            pool,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            ahead=Ahead.beside(largest, prompts=self.prompts_ahead, num_blocks=engine.limits.num_blocks),
        )


def check_fit(request: WorkRequest, engine: "Engine") -> None:
    """Checks that a prompt is valid and can ever be run here.

    Raises:
        InvalidRequest: names every field that is wrong.
        KvPoolFull: it is larger than the pool, however empty.
    """
    model = engine.limits
    check_work_request(request, vocab_size=model.vocab_size, max_model_len=model.max_model_len)
    blocks = -(-len(request.token_ids) // engine.layout.block_size)
    if blocks > model.num_blocks:
        raise KvPoolFull(f"the prompt needs {blocks} KV blocks, the worker has {model.num_blocks}")
