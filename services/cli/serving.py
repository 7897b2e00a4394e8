"""Serves a local cluster from its start to Ctrl-C: waits until it is ready, says where it is, answers a prompt, stops.

The first signal stops the processes in order, the second kills them.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass

from services.cli.cluster_plan import ClusterPlan
from services.cli.launched import Launched
from services.cli.local_cluster import ClusterFailed, LocalCluster
from services.cli.log_follower import LogFollower
from services.cli.routes import routes_ready
from services.cli.status_view import StatusView
from services.common import ports
from services.common.errors import BatonError
from services.common.ports import join_address

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOP_MARGIN_S = 3.0
_ROUTES_TIMEOUT_S = 10.0
_FOLLOW_INTERVAL_S = 0.2
# Where `baton generate` and `baton status` look by themselves.
_DEFAULT_FRONTEND = join_address("127.0.0.1", ports.FRONTEND)
_DEFAULT_DIRECTORY = join_address("127.0.0.1", ports.KVTRANSFER)

Ask = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How to serve. `ask` gets the frontend's address once the cluster is ready; `is_once` stops after it."""

    log_folder: pathlib.Path
    start_timeout_s: float
    drain_timeout_s: float
    ready_file: pathlib.Path | None = None
    ask: Ask | None = None
    is_once: bool = False
    is_verbose: bool = False


async def serve(plan: ClusterPlan, options: ServeOptions, view: StatusView) -> int:
    """Runs the cluster and returns the exit code: 0 after a wanted stop, 1 after a failure."""
    cluster = LocalCluster(plan, options.log_folder, view.changed)
    work = asyncio.create_task(_work(cluster, options, view), name="serve")
    with _on_stop_signals([work.cancel, cluster.kill]):
        try:
            await asyncio.wait([work])
            code = _outcome(work, view)
            view.say("stopping")
            await cluster.stop(options.drain_timeout_s + _STOP_MARGIN_S)
        finally:
            view.end()
            cluster.kill()
            if options.ready_file is not None:
                options.ready_file.unlink(missing_ok=True)
    return code


async def _work(cluster: LocalCluster, options: ServeOptions, view: StatusView) -> None:
    follower = asyncio.create_task(_follow_logs(cluster.processes, view)) if options.is_verbose else None
    try:
        for note in cluster.plan.notes:
            view.say(f"note: {note}")
        view.begin(cluster.processes)
        await cluster.start(options.start_timeout_s)
        if not await routes_ready(cluster.plan, _ROUTES_TIMEOUT_S):
            view.say("note: a frontend does not reach every worker yet; `baton status` shows them")
        view.end()
        _announce(cluster, options, view)
        if options.ask is not None:
            await options.ask(cluster.plan.of_role("frontend")[0].address)
        if not options.is_once:
            view.say("serving until Ctrl-C")
            await cluster.wait()
    finally:
        view.end()
        if follower is not None:
            follower.cancel()


def _outcome(work: "asyncio.Task[None]", view: StatusView) -> int:
    """Exit code of the finished work; says what went wrong."""
    if work.cancelled():
        return 0
    error = work.exception()
    if error is None:
        return 0
    if not isinstance(error, (ClusterFailed, BatonError)):
        raise error
    view.say(f"failed: {error}")
    return 1


def _announce(cluster: LocalCluster, options: ServeOptions, view: StatusView) -> None:
    addresses = [process.address for process in cluster.plan.of_role("frontend")]
    if addresses:
        view.say(f"ready: gRPC API at {', '.join(addresses)}")
        directory = cluster.plan.of_role("kvtransfer")[0].address
        at = "" if addresses[0] == _DEFAULT_FRONTEND else f"--address {addresses[0]} "
        of = "" if directory == _DEFAULT_DIRECTORY else f" --directory {directory}"
        view.say(f'  baton generate {at}"Who are you?"')
        view.say(f"  baton status{of}")
    view.say(f"  logs in {options.log_folder}/")
    if options.ready_file is not None:
        _write_ready_file(options.ready_file, cluster)


def _write_ready_file(path: pathlib.Path, cluster: LocalCluster) -> None:
    """Writes what was started, for programs; the file appears complete or not at all."""
    processes = [
        {
            "name": process.plan.name,
            "role": process.plan.role,
            "address": process.plan.address,
            "metrics": process.plan.metrics_address,
            "pid": process.pid,
            "log": str(process.log_path),
        }
        for process in cluster.processes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"processes": processes}, indent=2) + "\n")
    os.replace(partial, path)


async def _follow_logs(processes: list[Launched], view: StatusView) -> None:
    """Shows what the processes write, each line after its process's name, until cancelled."""
    followers = {process.plan.name: LogFollower(process.log_path) for process in processes}
    while True:
        for name, follower in followers.items():
            for line in follower.new_lines():
                view.say(f"{name:<13} {line}")
        await asyncio.sleep(_FOLLOW_INTERVAL_S)


@contextlib.contextmanager
def _on_stop_signals(actions: list[Callable[[], object]]) -> Generator[None]:
    """Runs one action a signal, the last one for all further signals."""
    loop = asyncio.get_running_loop()
    left = list(actions)

    def act() -> None:
        (left.pop(0) if len(left) > 1 else left[0])()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
