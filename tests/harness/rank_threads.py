"""Ranks of one worker as threads of the test: real sockets and the real exchange, but no processes."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from services.common.types import KvLayout
from services.engine.attention.select import make_backend
from services.engine.config import EngineConfig
from services.engine.engine import Engine, EngineLimits
from services.engine.load import load_model
from services.engine.paged_kv import PagedKv
from services.engine.runner import Runner
from services.engine.tensor_parallel.group import RankGroup, exchange_bytes
from services.engine.tensor_parallel.link import Kind, Link, RankLost, link_pair
from services.engine.tensor_parallel.runner import ShardedRunner, follow
from tests.harness.checkpoints import EOS, VOCAB, tiny_checkpoint

WAIT_S = 30.0
BLOCK_SIZE = 8
NUM_BLOCKS = 128


def rank_links(degree: int) -> list[dict[int, Link]]:
    """Each rank's links to all others."""
    links: list[dict[int, Link]] = [{} for _ in range(degree)]
    for one, other in itertools.combinations(range(degree), 2):
        links[one][other], links[other][one] = link_pair(one, other)
    return links


def rank_groups(degree: int, timeout_s: float = WAIT_S) -> list[RankGroup]:
    """The group as each rank sees it."""
    exchange = torch.zeros(exchange_bytes(degree), dtype=torch.uint8)
    return [RankGroup(rank, links, exchange, timeout_s) for rank, links in enumerate(rank_links(degree))]


def on_all(groups: list[RankGroup], work: Callable[[RankGroup], Any]) -> list[Any]:
    """What `work` gives, or the exception that it raises, on each rank, all at once; the groups end.

    A rank that lost another closes its group, as its process does: a third one may wait for a word of it.
    """
    found: list[Any] = [None] * len(groups)

    def run(group: RankGroup) -> None:
        try:
            found[group.rank] = work(group)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            found[group.rank] = error
            if isinstance(error, RankLost):
                group.close()

    threads = [threading.Thread(target=run, args=(group,), daemon=True) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    for group in groups:
        group.close()
    assert not any(thread.is_alive() for thread in threads), "a rank never came back"
    return found


@contextlib.contextmanager
def sharded_engine(architecture: str, degree: int = 2, dtype: str = "float32", **overrides: Any) -> Iterator[Engine]:
    """An engine whose other ranks are threads."""
    torch.set_num_threads(1)  # the ranks' pools would get in each other's way
    path = tiny_checkpoint(architecture, **overrides)
    config = EngineConfig(checkpoint=path, dtype=dtype, device="cpu", tensor_parallel=degree)
    ranks = [load_model(config, lambda line: None, rank) for rank in range(degree)]
    links, exchange = rank_links(degree), torch.zeros(exchange_bytes(degree), dtype=torch.uint8)
    attention = "gather" if ranks[0].kernels is None else "native"
    kv: list[torch.Tensor] = []
    runners: list[Runner] = []
    for rank, loaded in enumerate(ranks):
        shape = loaded.shape
        dims = (shape.num_layers, 2, shape.num_kv_heads, NUM_BLOCKS, BLOCK_SIZE, shape.head_dim)
        kv.append(torch.zeros(dims, dtype=loaded.dtype))
        loaded.group_slot.group = RankGroup(rank, links[rank], exchange, WAIT_S)
        runners.append(Runner(loaded.forward, loaded.slot, make_backend(attention, kv[-1], loaded.kernels)))
    threads = [
        threading.Thread(target=_follow, args=(runner, loaded.group_slot.group), daemon=True)
        for runner, loaded in zip(runners[1:], ranks[1:], strict=True)
    ]
    for thread in threads:
        thread.start()
    shape, group = ranks[0].shape, ranks[0].group_slot.group
    assert group is not None
    layout = KvLayout(
        model_fingerprint=f"{architecture}{overrides}",
        dtype=dtype,
        num_layers=shape.num_layers,
        num_kv_heads=shape.num_kv_heads * degree,
        head_dim=shape.head_dim,
        block_size=BLOCK_SIZE,
        tensor_parallel=degree,
    )
    limits = EngineLimits(
        num_blocks=NUM_BLOCKS,
        max_model_len=160,
        vocab_size=VOCAB,
        eos_token_ids=(EOS,),
        max_num_seqs=8,
        max_num_batched_tokens=48,
    )
    try:
        yield Engine(ShardedRunner(runners[0], group), PagedKv(*kv), layout, limits)
    finally:
        for link in links[0].values():
            link.send(Kind.STOP)
        for thread in threads:
            thread.join(WAIT_S)
        for link in itertools.chain.from_iterable(each.values() for each in links):
            link.close()
        assert not any(thread.is_alive() for thread in threads), "a rank goes on after its engine was closed"


def _follow(runner: Runner, group: RankGroup) -> None:
    with contextlib.suppress(RankLost):
        follow(runner, group)
