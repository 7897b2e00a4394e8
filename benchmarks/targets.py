"""What is measured in turn: local clusters or a frontend that runs, and other engines beside them."""

import argparse
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from benchmarks.answers import FrontendAnswers
from benchmarks.clusters import CLUSTERS, local_clusters, parse_variant
from benchmarks.flags import positive
from benchmarks.load import Load, Run
from benchmarks.peers.options import add_folder, peers
from benchmarks.peers.peer_process import running_peer
from benchmarks.plan import Plan, ordinary_tokens
from services.cli.secure import use_variables
from services.common.checkpoint import read_model_facts, resolve_checkpoint
from services.common.config import ConfigError


class Target(Protocol):
    """Takes plans, one after the other."""

    async def run(self, plan: Plan, prompts: Sequence[Sequence[int]], on_end: Callable[[], None]) -> Run:
        """Sends everything and returns once every request has ended; `on_end` is called after each."""
        ...


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Options that say what to measure."""
    add = parser.add_argument
    add("--model", default="demo", help="checkpoint: demo, a directory or a hub id (%(default)s)")
    add("--address", default="", metavar="HOST:PORT", help="measure this frontend and start nothing")
    add(
        "--clusters",
        type=_clusters,
        default="split,colocated",
        help=f"local clusters: {', '.join(CLUSTERS)}, alone or with most prompt tokens in a step, as in colocated-256 "
        "(%(default)s)",
    )
    add("--peers", type=peers, default="", help="other engines beside them, such as vllm,openvino:int8; see `peers`")
    add_folder(parser)
    add("--dtype", default="", help="element type of weights and KV in local clusters; empty: the workers' default")
    add("--timeout-s", type=positive, default=600.0, help="deadline of each request (%(default)s)")
    add(
        "--start-timeout-s",
        type=positive,
        default=300.0,
        help="time for each local cluster or peer to become ready (%(default)s)",
    )


@contextlib.asynccontextmanager
async def open_targets(given: argparse.Namespace, longest: int) -> AsyncGenerator[dict[str, Target]]:
    """What the options name, ready to be asked for requests of up to `longest` tokens.

    Raises:
        ConfigError: there is no such checkpoint, a peer could not be started, or a file that secures is wrong.
        ClusterFailed: a local cluster did not become ready.
    """
    async with contextlib.AsyncExitStack() as stack:
        if given.address:
            use_variables()  # local clusters are in plaintext
            addresses = {"frontend": given.address}
        else:
            checkpoint = resolve_checkpoint(given.model)
            wanted = local_clusters(given.clusters, checkpoint, given.dtype, given.start_timeout_s)
            plans = await stack.enter_async_context(wanted)
            named = zip(given.clusters, plans, strict=True)
            addresses = {name: plan.of_role("frontend")[0].address for name, plan in named}
        targets: dict[str, Target] = {}
        for name, address in addresses.items():
            answers = FrontendAnswers(address)
            stack.push_async_callback(answers.close)
            targets[name] = Load(answers, given.timeout_s)
        for side in given.peers:
            timeouts_s = (given.start_timeout_s, given.timeout_s)
            peer = running_peer(side, resolve_checkpoint(given.model), given.peer_folder, longest, timeouts_s)
            targets[side.name] = await stack.enter_async_context(peer)
        yield targets


def prompt_tokens(model: str, longest: int) -> list[int]:
    """Token ids from which prompts are drawn.

    Raises:
        ConfigError: there is no such checkpoint, or it cannot hold a request of `longest` tokens.
    """
    facts = read_model_facts(resolve_checkpoint(model))
    if longest > facts.max_position:
        raise ConfigError(f"a request takes {longest} tokens, the model at most {facts.max_position}")
    return ordinary_tokens(facts.vocab_size, facts.eos_token_ids)


def _clusters(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    try:
        for name in names:
            parse_variant(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names a cluster twice")
    return names
