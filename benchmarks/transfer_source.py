"""The sending process of the transfer benchmark; started by it, with a case as JSON, and runs until its input ends.

Prints one line once it can be asked: its gRPC address and the port of its raw socket.
"""

import asyncio
import json
import sys

import torch

from benchmarks.raw_socket import RawServer
from benchmarks.transfer_pair import SOURCE_ID, LaidOutKv, TransferCase, make_kv, worker
from services.common.rpc.server import RpcServer
from services.common.types import ChoiceTokens, StageTimes, Tier, Token
from services.kvtransfer.source import KvSource
from services.kvtransfer.transfer_service import binding

_FIRST_TOKENS = (ChoiceTokens(0, (Token(7, 0),)),)


async def serve(case: TransferCase) -> None:
    """Opens every ticket of the case, finished, and serves until standard input ends."""
    kv, blocks = make_kv(case.fetch_tokens, case.layout, case.device)
    own = worker(SOURCE_ID, Tier.PREFILL, "127.0.0.1:1", case.layout)
    source = KvSource(LaidOutKv(kv, case.layout), own, case.config, lambda ticket_id: None)
    await source.start()
    server = RpcServer("127.0.0.1", 0, [binding(source)])
    port = await server.start()
    raw = RawServer()
    for tokens in {case.message_tokens, case.fetch_tokens}:
        for ticket_id in case.ticket_ids(tokens):
            source.open(ticket_id, f"request-{ticket_id}", blocks, tokens)
            source.advance(ticket_id, tokens)
            source.finish(ticket_id, _FIRST_TOKENS, StageTimes(), 0)
    sys.stdout.write(json.dumps({"address": f"127.0.0.1:{port}", "raw_port": raw.port}) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    raw.close()
    await source.close()
    await server.stop(1.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(serve(TransferCase(**json.loads(sys.argv[1]))))
