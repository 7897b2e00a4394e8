"""One worker as this frontend talks to it: its channels and the clients on them."""

import grpc

from services.common.rpc.channel import open_channel
from services.common.types import WorkerInfo
from services.common.worker_client import WorkerClient
from services.decode.client import DecodeClient
from services.kvtransfer.client import KvTransferClient
from services.prefill.client import PrefillClient


class Connection:
    """Channels of its own to one worker; they connect when first used."""

    def __init__(self, worker: WorkerInfo, *, max_message_bytes: int) -> None:
        self.peer = peer = f"{worker.tier.value} worker {worker.worker_id} at {worker.address}"
        self._channel: grpc.aio.Channel = open_channel(worker.address, max_message_bytes=max_message_bytes)
        self.prefill = PrefillClient(self._channel, peer)
        self.decode = DecodeClient(self._channel, peer)
        self.tickets = KvTransferClient(worker.address, peer)
        self.worker = WorkerClient(self._channel, peer)

    async def close(self) -> None:
        """Ends every call to the worker and frees the channels."""
        self.decode.close()
        await self._channel.close()
        await self.tickets.close()
