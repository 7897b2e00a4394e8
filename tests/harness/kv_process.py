"""A source or a sink in a process of its own, to be killed, stopped and restarted by tests.

    python -m tests.harness.kv_process source INCARNATION PORT COMPUTED_TOKENS
    python -m tests.harness.kv_process sink ADDRESS

Prints one line when it is ready (a source: its address) and runs until its standard input ends.
"""

import asyncio
import sys
import time

import torch

from services.common.types import Handoff, Tier
from services.kvtransfer.sink import KvSink
from tests.harness.fake_kv import FakeKv
from tests.harness.kv_pair import CONFIG, start_source, worker

NUM_BLOCKS = 512
NUM_TOKENS = 2000
BLOCKS = tuple(range(NUM_TOKENS // 4))
TICKET = "t"


async def run_source(incarnation: str, port: int, computed_tokens: int) -> None:
    """A prefill worker whose prompt is computed as far as told; finished where all is."""
    side = await start_source(FakeKv(num_blocks=NUM_BLOCKS), CONFIG, incarnation=incarnation, port=port)
    side.open(TICKET, NUM_TOKENS, BLOCKS)
    side.compute(TICKET, 0, computed_tokens, BLOCKS)
    if computed_tokens == NUM_TOKENS:
        side.finish(TICKET)
    _say(side.info.address)
    await asyncio.to_thread(sys.stdin.read)
    await side.stop()


async def run_sink(address: str) -> None:
    """A decode worker that fetches the ticket and says when the first KV has arrived."""
    kv = FakeKv(num_blocks=NUM_BLOCKS)
    sink = KvSink(kv, worker("decode-1", Tier.DECODE, kv), CONFIG)
    handoff = Handoff(ticket_id=TICKET, worker_id="prefill-0", incarnation="i1", address=address)
    fetch = asyncio.create_task(sink.fetch(handoff, f"request-{TICKET}", BLOCKS, 0, NUM_TOKENS, time.monotonic() + 60))
    while not kv.writes:  # noqa: ASYNC110 - nothing to wait for but the blocks themselves
        await asyncio.sleep(0.002)
    _say("fetching")
    await fetch
    await sink.close()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "source":
        asyncio.run(run_source(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        asyncio.run(run_sink(sys.argv[2]))
