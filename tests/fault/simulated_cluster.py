"""The processes of a cluster in one event loop on virtual time: what they are made of is real, the world is not.

Directory, workers and frontends are the same objects that their commands run, with their settings, servicers,
interceptors, schedulers, threads and timers. Replaced are gRPC's sockets (`memory_rpc.py`), the transport
(`virtual_transport.py`), the model (`FakeEngine`, a step takes virtual time) and the clock (`virtual_time.py`). The
seed decides how long each step takes; nothing else is random but ids.
"""

import asyncio
import contextlib
import contextvars
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from services.common.rpc.channel import open_channel
from services.common.sampling import SamplingParams
from services.frontend.client import GenerationClient
from services.kvtransfer.transport.available import AVAILABLE
from tests.fault.cluster_links import ClusterLinks
from tests.fault.evidence import ProcessState
from tests.fault.phases import CHUNK_TOKENS
from tests.fault.samples import asked, samples
from tests.fault.scenario import Topology
from tests.fault.simulated_engine import SimulatedEngine, SimulatedGate
from tests.fault.simulated_roles import BUILD, DIRECTORY, ROLES, SETTINGS
from tests.harness.fake_engine import FakeLimits, expected_tokens
from tests.harness.faulty_transport import FaultyTransport
from tests.harness.memory_rpc import Network, current_process
from tests.harness.ordered_faults import HurtOrder, OrderedFaults
from tests.harness.pauses import Pause, PausedTransport, Point
from tests.harness.text_checkpoint import text_checkpoint
from tests.harness.virtual_time import VirtualClock, queue_for, threading_for
from tests.harness.virtual_transport import VirtualExchange

LEASE_S = 10.0
DRAIN_S = 30.0
START_S = 30.0


class _Simulated:
    """One incarnation of one process."""

    def __init__(self, name: str, number: int, context: contextvars.Context) -> None:
        self.name = name
        self.identity = f"{name}#{number}"
        self.context = context
        self.process: Any = None
        self.health: asyncio.Task[None] | None = None

    def run(self, coroutine: Any) -> asyncio.Task[Any]:
        """Runs something as this process."""
        return asyncio.get_running_loop().create_task(coroutine, context=self.context)


class SimulatedCluster:
    """Satisfies `scenario.Cluster`. Thread: the event loop's; create it on a `VirtualLoop`."""

    is_timing_exact = True
    is_timing_judged = True
    lease_s = LEASE_S

    def __init__(self, topology: Topology, clock: VirtualClock, seed: int = 0) -> None:
        self.clock = clock
        self.links = ClusterLinks(Path())  # none: there is no TCP here
        self.network = Network()
        self.exchange = VirtualExchange(clock, self.network)
        self.hurts: dict[str, OrderedFaults] = {}
        self.pauses: dict[tuple[str, Point], int] = {}
        self.standing: set[str] = set()
        self.engines: dict[str, SimulatedEngine] = {}
        self.layouts: dict[str, dict[str, Any]] = {}
        self._topology = topology
        self._seed = seed
        self._addresses = {DIRECTORY: "127.0.0.1:30000"}
        self._running: dict[str, _Simulated] = {}
        self._count = 0
        self._ended: list[tuple[str, int | None]] = []
        self._unready: list[str] = []
        self._disposals: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Starts the processes of the topology and waits until every frontend can route to all workers."""
        await self.start(DIRECTORY)
        for role in ROLES:
            for number in range(getattr(self._topology, role)):
                await self.start(f"{role}-{number}")
        await self.routable()

    async def routable(self) -> None:
        """Waits until every frontend knows every worker that runs."""
        wanted = (len(self.names("prefill")), len(self.names("decode")))
        async with asyncio.timeout(START_S):
            for frontend in self.names("frontend"):
                async with GenerationClient(self.address(frontend)) as client:
                    while True:
                        (model,) = await client.list_models()
                        if (model.prefill_workers, model.decode_workers) == wanted:
                            break
                        await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Ends everything."""
        self.resume()
        for name in (*self.names("frontend"), *self.names("decode"), *self.names("prefill"), *self.names(DIRECTORY)):
            await self._end(self._running.pop(name))
        while self._disposals:
            await asyncio.wait(self._disposals)

    def names(self, *roles: str) -> list[str]:
        return [name for name in self._running if not roles or _role(name) in roles]

    def address(self, name: str) -> str:
        return self._addresses[name]

    def expected(self, prompt: list[int], sampling: SamplingParams) -> dict[int, list[int]]:
        count = sampling.max_tokens or 0
        return {choice: expected_tokens(prompt, sampling, count, choice=choice) for choice in range(sampling.n)}

    async def kill(self, name: str) -> None:
        victim = self._running.pop(name)
        if victim.health is not None:
            victim.health.cancel()
        self._ended.append((name, -9))
        self._unready.append(name)
        self.exchange.cut(victim.identity)
        self.network.cut(victim.identity)
        # Nobody sees any more what it does; its threads and tasks are swept up.
        disposal = asyncio.create_task(self._end(victim))
        self._disposals.add(disposal)
        disposal.add_done_callback(self._disposals.discard)

    async def terminate(self, name: str) -> int | None:
        leaving = self._running[name]
        await leaving.run(leaving.process.drain(time.monotonic() + DRAIN_S))
        await self._end(self._running.pop(name))
        self._ended.append((name, 0))
        return 0

    async def freeze(self, name: str) -> None:
        self.network.freeze(self._running[name].identity)

    async def thaw(self, name: str) -> None:
        self.network.thaw(self._running[name].identity)
        self.clock.notify()

    async def start(self, name: str, version: str = "test", **flags: str) -> None:
        self._count += 1
        identity = f"{name}#{self._count}"
        with self.network.as_process(identity):
            started = _Simulated(name, self._count, contextvars.copy_context())
        self._addresses.setdefault(name, f"127.0.0.1:{30000 + self._count}")
        settings = self._settings(name, flags)
        role = _role(name)
        if role in ("prefill", "decode"):
            chunk = CHUNK_TOKENS if role == "prefill" else 64
            limits = FakeLimits(num_blocks=settings.num_blocks or 128, max_num_seqs=8, max_num_batched_tokens=chunk)
            layout = self.layouts.get(name, {})
            self.hurts.setdefault(name, OrderedFaults(name))
            self.engines[name] = SimulatedEngine(self, name, limits, self._seed + self._count, layout)

        async def begin() -> None:
            started.process = BUILD[role](settings)
            with mock.patch("services.worker.process.version", return_value=version):
                await started.process.start()

        await started.run(begin())
        self._running[name] = started
        started.health = asyncio.create_task(self._follow_health(name))

    async def join(self, role: str, **flags: str) -> str:
        name = next(name for number in itertools.count() if (name := f"{role}-{number}") not in self._addresses)
        await self.start(name, **flags)
        return name

    def slow_down(self, name: str, times: float) -> None:
        self.engines[name].slowness = times

    def hurt(self, order: HurtOrder) -> None:
        for hurts in self.hurts.values():
            hurts.obey(order)

    def num_hurt(self, name: str) -> int:
        return self.hurts[name].num_hurt

    def pause(self, pause: Pause) -> None:
        self.pauses[pause.tier, pause.point] = pause.at

    def resume(self) -> None:
        self.pauses.clear()
        self.clock.notify()

    def paused(self) -> set[str]:
        return self.standing & set(self._running)

    async def state(self, name: str) -> ProcessState:
        running = self._running[name]
        incarnation, counts = running.identity, {}
        if _role(name) in ("prefill", "decode"):
            incarnation, counts = await asked(self.address(name), name)
        registry = getattr(running.process, "registry", None)
        metrics = samples(generate_latest(registry).decode()) if registry is not None else {}
        return ProcessState(incarnation=incarnation, counts=counts, metrics=metrics)

    def ended(self) -> list[tuple[str, int | None]]:
        fatal = [(name, 1) for name, each in self._running.items() if each.process.fatal.error is not None]
        return [*self._ended, *fatal]

    def forget_ends(self) -> None:
        """What has ended so far was meant to."""
        self._ended.clear()

    def unready(self) -> list[str]:
        return list(self._unready)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Puts the world of the simulation in the place of the real one."""
        transports: Any = {"gloo": self._open_transport}
        stand_ins = {
            "services.engine.thread.threading": threading_for(self.clock),
            "services.engine.thread.queue": queue_for(self.clock),
            "services.kvtransfer.channel.threading": threading_for(self.clock),
            "services.kvtransfer.channel.queue": queue_for(self.clock),
            "services.worker.loading.load_warm": lambda settings, _: self.engines[settings.worker_id],
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.network.installed())
            stack.enter_context(mock.patch.dict(AVAILABLE, transports))  # type: ignore[arg-type]
            for name, stand_in in stand_ins.items():
                stack.enter_context(mock.patch(name, stand_in))
            yield

    def _open_transport(self, meeting: Any, timeout_s: float) -> Any:
        name = current_process().partition("#")[0]
        opened = FaultyTransport(self.exchange.open(meeting, timeout_s), self.hurts[name])
        return PausedTransport(opened, SimulatedGate(self, name))

    def _settings(self, name: str, flags: dict[str, str]) -> Any:
        role = _role(name)
        values: dict[str, Any] = {"port": int(self.address(name).rpartition(":")[2]), "metrics_port": 0}
        if role != DIRECTORY:
            values |= {"directory": self.address(DIRECTORY), "model": str(text_checkpoint())}
            values["served_model_name"] = "fake"
        if role in ("prefill", "decode"):
            values |= {"worker_id": name, "kv_lease_s": LEASE_S, "enable_prefix_caching": False, "max_num_seqs": 8}
            values["max_num_batched_tokens"] = CHUNK_TOKENS if role == "prefill" else 64
        further = {key.replace("-", "_"): value for key, value in self._topology.flags.get(role, {}).items()}
        return SETTINGS[role](**{**values, **further, **flags})

    async def _end(self, process: _Simulated) -> None:
        if process.health is not None:
            process.health.cancel()
        await process.run(process.process.stop())

    async def _follow_health(self, name: str) -> None:
        channel = open_channel(self.address(name))
        stub: Any = health_pb2_grpc.HealthStub(channel)
        was_serving = False
        try:
            async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
                if was_serving and not is_serving:
                    self._unready.append(name)
                was_serving = is_serving
        except grpc.aio.AioRpcError:
            return
        finally:
            await channel.close()


@contextlib.asynccontextmanager
async def simulated_cluster(topology: Topology, clock: VirtualClock, seed: int = 0) -> AsyncIterator[SimulatedCluster]:
    """Starts the processes of a topology and ends them."""
    cluster = SimulatedCluster(topology, clock, seed)
    with cluster.installed():
        try:
            await cluster.open()
            yield cluster
        finally:
            await cluster.close()


def _role(name: str) -> str:
    return DIRECTORY if name == DIRECTORY else name.rpartition("-")[0]
