"""A local cluster's processes, with real ones: directories, which start quickly, stand in for every role."""

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator

import psutil
import pytest

from services.cli.cluster_plan import ClusterPlan, ClusterSettings, ProcessPlan, plan_cluster
from services.cli.free_ports import FreePorts
from services.cli.launched import Change, State
from services.cli.local_cluster import ClusterFailed, LocalCluster
from services.cli.restarts import RestartPolicy

START_S = 60
QUICK = RestartPolicy(first_wait_s=0.01, max_wait_s=0.05, max_quick_deaths=3)


def directory(name: str, role: str) -> ProcessPlan:
    """A directory that plays the role of another process."""
    settings = ClusterSettings(counts={}, ports={"kvtransfer": 0})
    plan = plan_cluster(settings, [0], 0, FreePorts("127.0.0.1").take).processes[0]
    return dataclasses.replace(plan, name=name, role=role)


def program(name: str, role: str, code: str) -> ProcessPlan:
    """A process that runs Python code and never serves."""
    return dataclasses.replace(directory(name, role), argv=(sys.executable, "-c", code))


Changes = asyncio.Queue[Change]


@contextlib.asynccontextmanager
async def cluster_of(folder: pathlib.Path, *processes: ProcessPlan) -> AsyncIterator[tuple[LocalCluster, Changes]]:
    """A cluster that is stopped at the end, and what it reports."""
    changes: Changes = asyncio.Queue()
    cluster = LocalCluster(ClusterPlan(processes=processes), folder, changes.put_nowait, QUICK)
    try:
        yield cluster, changes
    finally:
        cluster.kill()
        await cluster.stop(5)


async def python(code: str) -> asyncio.subprocess.Process:
    """Runs a program that can import the project and these tests."""
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'protos'}", "PYTHONUNBUFFERED": "1"}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env=environment, cwd=root
    )


async def until(changes: Changes, state: State) -> Change:
    """Waits for a process to enter a state."""
    async with asyncio.timeout(START_S):
        while True:
            change = await changes.get()
            if change.state is state:
                return change


async def test_it_starts_when_all_serve_and_stops_in_order(tmp_path: pathlib.Path) -> None:
    """`start` returns with every process serving; `stop` ends the frontend before the directory, and leaves none."""
    async with cluster_of(tmp_path, directory("d", "kvtransfer"), directory("f", "frontend")) as (cluster, changes):
        await cluster.start(START_S)
        pids = [process.pid for process in cluster.processes]
        assert cluster.awaited() == []
        await cluster.stop(5)
        assert [(await until(changes, State.STOPPED)).process for _ in range(2)] == ["f", "d"]
        assert not any(psutil.pid_exists(pid) for pid in pids if pid)


async def test_a_killed_process_is_reported_and_started_again(tmp_path: pathlib.Path) -> None:
    """After SIGKILL the signal is named, and the process serves again under a new pid."""
    async with cluster_of(tmp_path, directory("d", "kvtransfer")) as (cluster, changes):
        await cluster.start(START_S)
        await until(changes, State.READY)
        old = cluster.processes[0].pid
        assert old is not None
        os.kill(old, signal.SIGKILL)
        assert "SIGKILL" in (await until(changes, State.WAITING)).reason
        await until(changes, State.READY)
        assert cluster.processes[0].pid != old


async def test_a_process_that_keeps_dying_is_given_up_with_its_last_words(tmp_path: pathlib.Path) -> None:
    """Start fails after a bounded number of deaths, and the message has the end of the log."""
    async with cluster_of(tmp_path, program("p", "prefill", "raise SystemExit('out of cheese')")) as (cluster, _):
        with pytest.raises(ClusterFailed, match="out of cheese"):
            await cluster.start(START_S)
        assert cluster.stats() == {"deaths": QUICK.max_first_deaths, "running": 0}


async def test_wrong_settings_are_not_tried_again(tmp_path: pathlib.Path) -> None:
    """Exit code 2 means that the settings are wrong: the process is given up after one death."""
    async with cluster_of(tmp_path, program("p", "prefill", "raise SystemExit(2)")) as (cluster, _):
        with pytest.raises(ClusterFailed, match="p keeps dying"):
            await cluster.start(START_S)
        assert cluster.stats()["deaths"] == 1


async def test_a_process_that_never_serves_is_named(tmp_path: pathlib.Path) -> None:
    """Start fails at its deadline and says who was awaited."""
    sleeping = program("sleepy", "decode", "import time; time.sleep(60)")
    async with cluster_of(tmp_path, sleeping) as (cluster, _):
        with pytest.raises(ClusterFailed, match="sleepy"):
            await cluster.start(0.5)


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: pathlib.Path) -> None:
    """`stop` ends within its grace, whatever a process does with SIGTERM."""
    told = tmp_path / "told"
    os.mkfifo(told)
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(told)!r}, 'w').close(); time.sleep(60)"
    async with cluster_of(tmp_path, program("deaf", "decode", code)) as (cluster, _):
        process = cluster.processes[0]
        process.start()
        async with asyncio.timeout(START_S):
            await asyncio.to_thread(told.read_bytes)
            await cluster.stop(0.2)
        assert process.state is State.STOPPED
        assert cluster.stats()["running"] == 0


async def test_without_a_worker_that_could_decode_waiting_ends(tmp_path: pathlib.Path) -> None:
    """`wait` fails once every decode worker is given up, although frontend and prefill live."""
    dying = program("d", "decode", "raise SystemExit(1)")
    others = directory("f", "frontend"), directory("p", "prefill")
    async with cluster_of(tmp_path, *others, dying) as (cluster, _):
        for process in cluster.processes:
            process.start()
        with pytest.raises(ClusterFailed, match="d keeps dying"):
            async with asyncio.timeout(START_S):
                await cluster.wait()


async def test_a_lost_prefill_tier_is_no_reason_to_stop(tmp_path: pathlib.Path) -> None:
    """`wait` goes on where only prefill workers are given up: decode workers run whole requests then."""
    dying = program("p", "prefill", "raise SystemExit(1)")
    async with cluster_of(tmp_path, directory("f", "frontend"), directory("d", "decode"), dying) as (cluster, changes):
        for process in cluster.processes:
            process.start()
        waiting = asyncio.create_task(cluster.wait())
        try:
            await until(changes, State.GIVEN_UP)
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            assert not done
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def test_nothing_survives_a_killed_launcher(tmp_path: pathlib.Path) -> None:
    """SIGKILL of the launcher, which can clean up nothing, ends its processes too."""
    launcher = f"""
import asyncio, json, pathlib
from services.cli.local_cluster import LocalCluster
from tests.integration.test_up_cluster import ClusterPlan, directory

async def main():
    plan = ClusterPlan(processes=(directory("d", "kvtransfer"), directory("f", "frontend")))
    cluster = LocalCluster(plan, pathlib.Path({str(tmp_path)!r}), lambda change: None)
    await cluster.start(60)
    print(json.dumps([process.pid for process in cluster.processes]), flush=True)
    await cluster.wait()

asyncio.run(main())
"""
    started = await python(launcher)
    assert started.stdout is not None
    async with asyncio.timeout(START_S):
        processes = [psutil.Process(pid) for pid in json.loads(await started.stdout.readline())]
        started.kill()
        await started.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, processes, 30)
    assert (len(gone), alive) == (2, [])


async def test_a_second_signal_does_not_wait_for_anybody(tmp_path: pathlib.Path) -> None:
    """The first Ctrl-C asks a deaf process to stop, the second kills it: the launcher ends long before the grace."""
    told = tmp_path / "told"
    os.mkfifo(told)
    launcher = f"""
import asyncio, pathlib, sys
from rich.console import Console
from services.cli.serving import ServeOptions, serve
from services.cli.status_view import StatusView
from tests.integration.test_up_cluster import ClusterPlan, program

code = "import signal, time; signal.signal(15, signal.SIG_IGN); open({str(told)!r}, 'w').close(); time.sleep(60)"
options = ServeOptions(log_folder=pathlib.Path({str(tmp_path)!r}), start_timeout_s=60, drain_timeout_s=60)
plan = ClusterPlan(processes=(program("deaf", "decode", code),))
sys.exit(asyncio.run(serve(plan, options, StatusView(Console()))))
"""
    started = await python(launcher)
    assert started.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            await asyncio.to_thread(told.read_bytes)
        async with asyncio.timeout(30):
            started.send_signal(signal.SIGINT)
            while b"stopping" not in await started.stdout.readline():
                pass
            started.send_signal(signal.SIGINT)
            assert await started.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
