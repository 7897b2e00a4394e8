"""The directory process: what is wired to what."""

import asyncio
import secrets

from prometheus_client import CollectorRegistry

from services.common.lifecycle import Fatal
from services.common.log import get_logger
from services.common.metrics import MetricsServer, start_metrics_server
from services.common.rpc.server import RpcServer
from services.kvtransfer.compatibility import incompatibility
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.metrics import DirectoryMetrics
from services.kvtransfer.directory.registry import Registry
from services.kvtransfer.directory.service import DirectoryServicer

STOP_GRACE_S = 1.0

_log = get_logger(__name__)


class DirectoryProcess:
    """One directory; `port` is the bound one once it has started. Create it on the event loop."""

    def __init__(self, settings: DirectorySettings) -> None:
        self.fatal = Fatal()
        self.port = 0
        self._settings = settings
        self._prometheus = CollectorRegistry()
        # A revision fits into 64 bits with room to count.
        members = Registry(settings.lease_s, incompatibility, first_revision=secrets.randbits(62))
        self._service = DirectoryServicer(members, DirectoryMetrics(self._prometheus))
        self._server = RpcServer(
            settings.host,
            settings.port,
            [self._service.binding()],
            limits=settings.server_limits(),
            security=settings.server_security(),
            registry=self._prometheus,
        )
        self._metrics: MetricsServer | None = None

    async def start(self) -> None:
        """Listens and serves."""
        self._service.start(self.fatal.fail)
        self.port = await self._server.start()
        if self._settings.metrics_port:
            self._metrics = start_metrics_server(self._settings.host, self._settings.metrics_port, self._prometheus)
        self._server.set_serving(True)
        _log.info("directory_listening", host=self._settings.host, port=self.port, lease_s=self._settings.lease_s)

    async def drain(self, deadline: float) -> None:
        """Has nothing to wait for: its state is soft, and watchers keep what they know."""
        self._server.set_serving(False)

    async def stop(self) -> None:
        """Ends all watches and frees the ports."""
        await self._service.close()
        await self._server.stop(STOP_GRACE_S)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
            self._metrics = None

    def stats(self) -> dict[str, int]:
        """Members, watches and calls in flight."""
        return {**self._service.stats(), **self._server.stats()}
