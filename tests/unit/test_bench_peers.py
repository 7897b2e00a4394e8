"""The comparison with peers: which sides there are, how they are asked, and what is made of their figures."""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import AsyncGenerator

import pytest

from benchmarks.peers.catalog import Side, parse_side
from benchmarks.peers.compare import ratios_of
from benchmarks.peers.options import peers
from benchmarks.peers.peer_process import PeerProcess
from benchmarks.plan import Plan, Planned
from services.common.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAIT_S = 60.0


@pytest.mark.parametrize(
    ("text", "side"),
    [("baton", Side("baton")), ("baton:int8", Side("baton", "int8")), ("openvino:int8", Side("openvino", "int8"))],
)
def test_a_side_is_an_engine_and_maybe_a_quantization(text: str, side: Side) -> None:
    """It also prints as it is written."""
    assert parse_side(text) == side
    assert side.name == text


@pytest.mark.parametrize("text", ["", "other", "vllm:int8", "openvino:int4", "baton:"])
def test_a_wrong_side_is_named(text: str) -> None:
    """The message says what there is."""
    with pytest.raises(ValueError, match=repr(text)):
        parse_side(text)


def test_peers_are_targets_of_other_benchmarks_too() -> None:
    """Any but Baton itself, whose clusters are named otherwise."""
    assert peers("") == ()
    assert peers("vllm,openvino:int8,vllm") == (Side("vllm"), Side("openvino", "int8"))
    with pytest.raises(argparse.ArgumentTypeError, match="no peer"):
        peers("vllm,baton")


def test_ratios_say_how_many_times_as_fast_baton_is() -> None:
    """More tokens and less time both give more than 1; sides are compared at equal precision, or not at all."""
    sides = {
        "baton": {"output_throughput": 30.0, "median_ttft_ms": 10.0},
        "vllm": {"output_throughput": 20.0, "median_ttft_ms": 15.0},
        "openvino:int8": {"output_throughput": 60.0},
    }
    assert ratios_of(sides) == {"vllm": {"output_throughput": 1.5, "median_ttft_ms": 1.5}}
    assert ratios_of({**sides, "baton:int8": {"output_throughput": 90.0}})["openvino:int8"] == {
        "output_throughput": 1.5
    }


def wait_until_stopped(pid: int) -> None:
    """Blocks until a child was stopped by a signal."""
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


@contextlib.asynccontextmanager
async def counting_peer(**options: int) -> AsyncGenerator[PeerProcess]:
    """A started peer that computes nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.harness.counting_peer", json.dumps(options), cwd=ROOT, start_new_session=True,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    peer = PeerProcess(process, "the counting peer", WAIT_S)
    try:
        await peer.ready(WAIT_S)
        yield peer
    finally:
        await peer.close()


async def test_a_peer_is_asked_open_and_closed_loop() -> None:
    """Every request of two orders comes back complete, none before it arrived, and what the peer prints is ignored."""
    planned = (Planned(0.0, 2, 5), Planned(0.05, 3, 2), Planned(0.1, 1, 1))
    prompts = [(1, 2), (1, 2, 3), (1,)]
    ended: list[None] = []
    async with counting_peer() as peer:
        assert peer.facts["version"] == "1"
        for concurrency in (None, 2):
            run = await peer.run(Plan(planned, concurrency), prompts, lambda: ended.append(None))
            timings = sorted(run.timings, key=lambda timing: timing.usage.prompt_tokens)
            assert [len(timing.tokens) for timing in timings] == [1, 5, 2]
            assert all(timing.tokens[0] >= timing.sent for timing in timings)
            assert run.ended >= timings[0].tokens[-1] >= 0.1
            assert not run.errors
    assert len(ended) == 6


async def test_a_request_of_the_wrong_length_is_an_error() -> None:
    """A peer that gives more tokens than asked for has not done the same work."""
    async with counting_peer(long=1) as peer:
        plan = Plan((Planned(0.0, 1, 2), Planned(0.0, 1, 2)), 2)
        run = await peer.run(plan, [(1,), (2,)], lambda: None)
    assert (len(run.timings), run.errors) == (1, {"WrongLength": 1})


async def test_a_peer_that_is_not_asked_is_stopped() -> None:
    """Its threads cannot take the cores from whoever is asked."""
    async with counting_peer() as peer:
        async with asyncio.timeout(WAIT_S):
            await asyncio.to_thread(wait_until_stopped, peer.pid)


async def test_a_dead_peer_is_an_error() -> None:
    """The message names it; nothing waits."""
    async with counting_peer() as peer:
        peer.kill()
        with pytest.raises(ConfigError, match="the counting peer"):
            await peer.run(Plan((Planned(0.0, 1, 1),), 1), [(1,)], lambda: None)
