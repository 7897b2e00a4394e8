"""The process of a rank other than 0: loads its part of the model and follows rank 0 until that is gone.

python -m services.engine.tensor_parallel.rank ORDER        ORDER: a RankOrder as JSON
"""

import json
import logging
import os
import socket
import sys

import torch

from services.common.config import ConfigError
from services.common.log import configure_logging, get_logger
from services.engine.attention.select import make_backend
from services.engine.load import LoadedModel, load_model
from services.engine.runner import Runner
from services.engine.tensor_parallel.group import RankGroup, exchange_bytes
from services.engine.tensor_parallel.link import Kind, Link, RankLost
from services.engine.tensor_parallel.order import RankOrder
from services.engine.tensor_parallel.ranks import LOAD_TIMEOUT_S
from services.engine.tensor_parallel.runner import follow
from services.engine.tensor_parallel.shared_memory import map_tensor

_log = get_logger(__name__)


def main(order: RankOrder) -> int:
    """Runs the rank; gives the exit code: 0 once rank 0 closes, 1 where a rank is lost, 2 where it cannot load."""
    configure_logging("info", process=f"rank-{order.rank}")
    torch.set_num_threads(order.config.num_threads)
    links = {peer: Link(socket.socket(fileno=descriptor), peer) for peer, descriptor in order.links.items()}
    try:
        loaded = load_model(order.config, lambda line: None, order.rank)
    except ConfigError as error:
        links[0].send(Kind.REFUSED, payload=str(error).encode())
        return 2
    try:
        _run(order, loaded, links)
    except RankLost as error:
        _log.error("rank_lost", rank=order.rank, reason=str(error))
        return 1
    return 0


def _run(order: RankOrder, loaded: LoadedModel, links: dict[int, Link]) -> None:
    """Joins the others and follows rank 0.

    Raises:
        RankLost: another rank is gone.
    """
    links[0].send(Kind.LOADED, payload=json.dumps(loaded.facts).encode())
    shape, dtype, attention = json.loads(_begin(links[0]))
    kv = map_tensor(order.kv, shape, getattr(torch, dtype))
    exchange = map_tensor(order.exchange, (exchange_bytes(order.config.tensor_parallel),), torch.uint8)
    group = loaded.group_slot.group = RankGroup(order.rank, links, exchange, order.config.rank_timeout_s)
    follow(Runner(loaded.forward, loaded.slot, make_backend(attention, kv, loaded.kernels)), group)


def _begin(link: Link) -> bytes:
    message = link.receive(LOAD_TIMEOUT_S)
    if message.kind is not Kind.BEGIN:
        raise RankLost("rank 0 could not load its part of the model")
    return message.payload


if __name__ == "__main__":
    exit_code = main(RankOrder.read(sys.argv[1]))
    logging.shutdown()
    os._exit(exit_code)  # torch takes seconds to tear down, and nothing here needs it
