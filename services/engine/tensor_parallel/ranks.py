"""Rank 0's hold of the other ranks: what they are started with, how they join, and how all of it ends."""

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence

import torch

from services.common import leash
from services.common.config import ConfigError
from services.engine.config import EngineConfig
from services.engine.tensor_parallel.group import RankGroup, exchange_bytes
from services.engine.tensor_parallel.keeper import RankKeeper, Start
from services.engine.tensor_parallel.link import Kind, Link, RankLost, link_pair
from services.engine.tensor_parallel.order import RankOrder
from services.engine.tensor_parallel.shared_memory import map_tensor, new_memory

MODULE = "services.engine.tensor_parallel.rank"
LOAD_TIMEOUT_S = 1800.0


def own_config(config: EngineConfig, rank: int) -> EngineConfig:
    """The engine's choices for one rank: its share of the threads, and one at least."""
    if config.tensor_parallel == 1:
        return config
    cores = len(config.rank_cores[rank]) if config.rank_cores else 0
    threads = config.num_threads // config.tensor_parallel if config.num_threads else cores
    return dataclasses.replace(config, num_threads=threads or max(1, torch.get_num_threads() // config.tensor_parallel))


class Ranks:
    """The other ranks of an engine; they load as soon as they are started.

    Thread: that which loads the engine, then that which closes it; the group belongs to the engine's.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._exchange = new_memory("exchange")
        self._kv = [new_memory(f"kv-{rank}") for rank in range(config.tensor_parallel)]
        self._links: dict[int, Link] = {}
        self._keeper = RankKeeper({})

    def start(self) -> None:
        """Starts a process for every rank but 0, each with links to all others.

        Raises:
            OSError: the machine does not start them.
        """
        ends: dict[int, dict[int, Link]] = {rank: {} for rank in range(self._config.tensor_parallel)}
        for one, other in itertools.combinations(ends, 2):
            ends[one][other], ends[other][one] = link_pair(one, other)
        self._links = ends.pop(0)
        orders = [self._order(rank, links) for rank, links in ends.items()]
        self._keeper = RankKeeper({order.rank: _start(order) for order in orders})
        try:
            self._keeper.start()
        finally:
            for link in itertools.chain.from_iterable(links.values() for links in ends.values()):
                link.release()  # the other processes have them now

    def await_loaded(self, facts: Sequence[object]) -> None:
        """Waits until every rank has loaded its part; `facts` are what rank 0 knows of its own, equal for all.

        Raises:
            ConfigError: a rank cannot load, or has loaded something else.
            RankLost: a rank died.
        """
        for rank, link in self._links.items():
            message = link.receive(LOAD_TIMEOUT_S)
            text = message.payload.decode()
            if message.kind is not Kind.LOADED:
                raise ConfigError(f"rank {rank}: {text}")
            if json.loads(text) != list(facts):
                raise ConfigError(f"rank {rank} has loaded {text}, rank 0 {list(facts)}; the checkpoint has changed")

    def map_kv(self, shape: Sequence[int], dtype: torch.dtype) -> list[torch.Tensor]:
        """The KV of all ranks, rank 0's first, each of this shape."""
        return [map_tensor(descriptor, shape, dtype) for descriptor in self._kv]

    def join(self, shape: Sequence[int], dtype: str, attention: str) -> RankGroup:
        """Lets the ranks take their KV and wait for steps; gives the group.

        Raises:
            RankLost: a rank died.
        """
        begin = json.dumps([list(shape), dtype, attention]).encode()
        for link in self._links.values():
            link.send(Kind.BEGIN, payload=begin)
        exchange = map_tensor(self._exchange, (exchange_bytes(self._config.tensor_parallel),), torch.uint8)
        self._close_memory()
        return RankGroup(0, self._links, exchange, self._config.rank_timeout_s)

    def watch(self, report: Callable[[RankLost], None]) -> None:
        """Reports, once and on a thread of its own, that a rank's process ended by itself."""
        self._keeper.watch(report)

    def close(self) -> None:
        """Ends the ranks; returns within seconds, with none left. Idempotent."""
        for link in self._links.values():
            with contextlib.suppress(RankLost):  # then it ends by that
                link.send(Kind.STOP)
            link.close()
        self._keeper.stop()
        self._close_memory()

    def stats(self) -> dict[str, int]:
        """Processes of ranks."""
        return self._keeper.stats()

    def _order(self, rank: int, links: dict[int, Link]) -> RankOrder:
        return RankOrder(
            rank=rank,
            config=own_config(self._config, rank),
            links={peer: link.fileno() for peer, link in links.items()},
            exchange=self._exchange,
            kv=self._kv[rank],
        )

    def _close_memory(self) -> None:
        """Drops the descriptors; what is mapped stays."""
        descriptors, self._exchange, self._kv = (self._exchange, *self._kv), -1, []
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)


def _start(order: RankOrder) -> Start:
    """The command line of a rank, which ends with this process, on its own cores."""
    config = order.config
    cores = ",".join(map(str, config.rank_cores[order.rank])) if config.rank_cores else ""
    leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), cores]
    return Start(
        argv=[*leashed, sys.executable, "-m", MODULE, order.spell()],
        env={**os.environ, "OMP_NUM_THREADS": str(config.num_threads)},
        descriptors=order.descriptors,
    )


def start_ranks(config: EngineConfig) -> Ranks:
    """Starts the other ranks of an engine; the caller closes what it gets.

    Raises:
        OSError: the machine does not start them; none is left.
    """
    ranks = Ranks(config)
    try:
        ranks.start()
    except BaseException:
        ranks.close()
        raise
    return ranks
