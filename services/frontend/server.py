"""The frontend process: what is wired to what."""

import asyncio
import contextlib
import time

from prometheus_client import CollectorRegistry

from services.common.checkpoint import read_model_facts, resolve_checkpoint
from services.common.config import ConfigError
from services.common.lifecycle import Fatal
from services.common.line import LineLimits
from services.common.log import get_logger
from services.common.metrics import MetricsServer, start_metrics_server
from services.common.places import Places
from services.common.rpc.server import RpcServer
from services.common.types import WorkerInfo
from services.frontend.answers import Answers
from services.frontend.config import FrontendSettings
from services.frontend.connection import Connection
from services.frontend.first_token_times import FirstTokenTimes
from services.frontend.members import Members, MemberSource
from services.frontend.metrics import FrontendMetrics
from services.frontend.parts import Parts
from services.frontend.pipeline import Pipeline
from services.frontend.releases import TicketReleases
from services.frontend.resource_collector import ResourceCollector
from services.frontend.retry_budget import RetryBudget
from services.frontend.router import Router
from services.frontend.routing_collector import RoutingCollector
from services.frontend.service import CallTimes, GenerationServicer
from services.frontend.tokenizer import load_tokenizer
from services.frontend.validate import PromptLimits
from services.kvtransfer.directory.client import watch_membership
from services.kvtransfer.directory.view import Hears
from services.kvtransfer.static_source import watch_static

STOP_GRACE_S = 1.0
# Readiness follows the membership; it is looked at anew at least this often.
_LOOK_AGAIN_S = 5.0

_log = get_logger(__name__)


class FrontendProcess:
    """One frontend; `port` is the bound one once it has started. Create it on the event loop.

    started ──usable route──▶ SERVING ◀──▶ NOT_SERVING (no route) ──drain──▶ NOT_SERVING ──stop──▶ gone
    """

    def __init__(self, settings: FrontendSettings) -> None:
        self.fatal = Fatal()
        self.port = 0
        self._settings = settings
        self.registry = CollectorRegistry()
        checkpoint = resolve_checkpoint(settings.model)
        limits = PromptLimits(
            model=settings.model_name,
            vocab_size=read_model_facts(checkpoint).vocab_size,
            max_prompt_bytes=settings.max_prompt_bytes,
        )
        self._tokenizer = load_tokenizer(
            checkpoint, threads=settings.tokenizer_threads, max_waiting=settings.max_waiting_texts
        )
        self.members = Members(
            _member_source(settings, lambda incarnation: self.members.hears(incarnation)),
            settings.model_name,
            self._connect,
            rules=settings.member_rules,
        )
        router = Router(settings.policies)
        RoutingCollector(router, self.members, self.registry)
        metrics = FrontendMetrics(self.registry)
        self._admission = Places(_line_limits(settings), metrics.queue, "this frontend")
        self._releases = TicketReleases()
        parts = Parts(
            tokenizer=self._tokenizer,
            admission=self._admission,
            router=router,
            members=self.members,
            releases=self._releases,
            metrics=metrics,
            budget=RetryBudget(settings.retry_ratio, settings.retries_per_s),
            first_token_times=FirstTokenTimes(),
        )
        pipeline = Pipeline(parts, limits, settings.rules)
        self._answers = Answers(pipeline.generate, settings.keeping, metrics)
        servicer = GenerationServicer(
            self._answers,
            self._tokenizer,
            self.members.served,
            limits,
            CallTimes(
                default_deadline_s=settings.default_deadline_s,
                max_deadline_s=settings.max_deadline_s,
                slow_reader_s=settings.slow_reader_timeout_s,
            ),
        )
        self._server = RpcServer(
            settings.host,
            settings.port,
            [servicer.binding()],
            limits=settings.server_limits(),
            security=settings.public_security(),
            registry=self.registry,
        )
        ResourceCollector(self.stats, self.registry)
        self._metrics_server: MetricsServer | None = None
        self._readiness: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens; calls are answered from now on, if only with NoWorker until a worker is there."""
        self.port = await self._server.start()
        if self._settings.metrics_port:
            self._metrics_server = start_metrics_server(self._settings.host, self._settings.metrics_port, self.registry)
        self.members.start()
        self._readiness = asyncio.create_task(self._follow_readiness(), name="readiness")
        _log.info("frontend_listening", host=self._settings.host, port=self.port, model=self._settings.model_name)

    async def drain(self, deadline: float) -> None:
        """Tells health watchers to stay away and lets running calls finish; new ones are refused, to resume too."""
        await self._end_readiness()
        self._server.set_serving(False)
        self._answers.drain()
        await self._server.stop(max(0.0, deadline - time.monotonic()))

    async def stop(self) -> None:
        """Ends every call and frees the ports."""
        await self._end_readiness()
        await self._server.stop(STOP_GRACE_S)
        await self._answers.close()
        await self._releases.close()
        await self.members.close()
        self._tokenizer.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
            self._metrics_server = None

    def stats(self) -> dict[str, int]:
        """Every count of the process, for its metrics, tests and leak checks. Any thread."""
        return {
            **self._server.stats(),
            "running_requests": self._admission.num_holders,
            "waiting_requests": self._admission.num_waiting,
            **self._answers.stats(),
            **self.members.stats(),
            **self._releases.stats(),
            **self._tokenizer.stats(),
        }

    def _connect(self, worker: WorkerInfo) -> Connection:
        return Connection(worker, max_message_bytes=self._settings.max_message_bytes)

    async def _follow_readiness(self) -> None:
        """Serving exactly while a request could be routed."""
        is_serving = False
        while not self.members.changes.is_closed:
            seen = self.members.changes.count
            can_serve = self.members.snapshot().can_serve
            if can_serve is not is_serving:
                is_serving = can_serve
                self._server.set_serving(is_serving)
                _log.info("readiness_changed", serving=is_serving)
            await self.members.changes.wait(seen, _LOOK_AGAIN_S)

    async def _end_readiness(self) -> None:
        if self._readiness is not None:
            self._readiness.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._readiness
            self._readiness = None


def _line_limits(settings: FrontendSettings) -> LineLimits:
    return LineLimits(
        places=settings.max_running_requests,
        max_waiting=settings.max_waiting_requests,
        ttl_s=settings.queue_ttl_s,
        aging_s=settings.priority_aging_s,
    )


def _member_source(settings: FrontendSettings, hears: Hears) -> MemberSource:
    if settings.directory:
        return lambda: watch_membership(settings.directory, hears)
    if settings.static_workers:
        return lambda: watch_static(settings.static_workers)
    message = "neither directory nor workers is set; say where the workers are, as in --directory host:port"
    raise ConfigError(message)
