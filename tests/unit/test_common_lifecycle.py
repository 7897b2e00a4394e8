"""The life of a process, with real signals."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from services.common.config import ConfigError
from services.common.lifecycle import EXIT_CONFIG, EXIT_FATAL, EXIT_OK, Fatal, launch, run, serve
from services.common.settings import ProcessSettings
from tests.harness.logs import restored_logging

DRAIN_S = 20.0


class ScriptedProcess:
    """Does what a test says, and notes what happened."""

    def __init__(self) -> None:
        self.fatal = Fatal()
        self.happened: list[str] = []
        self.noted = asyncio.Condition()
        self.work_done = asyncio.Event()
        self.start_error: Exception | None = None
        self.blocks_start = False
        self.signal_at: dict[str, int] = {}

    async def note(self, event: str) -> None:
        async with self.noted:
            self.happened.append(event)
            self.noted.notify_all()
        if event in self.signal_at:
            os.kill(os.getpid(), self.signal_at[event])

    async def reached(self, event: str) -> None:
        """Waits until something has happened."""
        async with asyncio.timeout(DRAIN_S), self.noted:
            await self.noted.wait_for(lambda: event in self.happened)

    async def start(self) -> None:
        await self.note("start")
        if self.start_error is not None:
            raise self.start_error
        if self.blocks_start:
            await asyncio.wait_for(asyncio.Event().wait(), DRAIN_S)
        await self.note("started")

    async def drain(self, deadline: float) -> None:
        await self.note("drain")
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            await self.work_done.wait()

    async def stop(self) -> None:
        await self.note("stop")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_stops(number: int):
    """Running work is finished; the exit code is that of success."""
    process = ScriptedProcess()
    process.signal_at = {"started": number}
    process.work_done.set()
    with capture_logs() as logs:
        assert await serve(process, DRAIN_S) == EXIT_OK
    assert process.happened == ["start", "started", "drain", "stop"]
    events = [line["event"] for line in logs]
    assert events == ["process_started", "process_draining", "process_drained", "process_stopped"]


async def test_the_second_signal_stops_at_once():
    """Whoever is impatient is not made to wait for the drain."""
    process = ScriptedProcess()
    process.signal_at = {"started": signal.SIGTERM, "drain": signal.SIGINT}
    began = time.monotonic()
    assert await serve(process, DRAIN_S) == 128 + signal.SIGINT
    assert time.monotonic() - began < DRAIN_S / 2
    assert process.happened[-1] == "stop"


async def test_a_drain_out_of_time_still_stops():
    """The budget holds, whatever is still running."""
    process = ScriptedProcess()
    process.signal_at = {"started": signal.SIGTERM}
    with capture_logs() as logs:
        assert await serve(process, 0.05) == EXIT_OK
    assert "process_drain_timed_out" in [line["event"] for line in logs]
    assert process.happened[-1] == "stop"


async def test_a_fatal_error_ends_the_process():
    """From any thread, without a drain, with an exit code that makes a supervisor restart it."""
    process = ScriptedProcess()
    error = RuntimeError("the engine thread died")
    serving = asyncio.create_task(serve(process, DRAIN_S))
    await process.reached("started")
    await asyncio.to_thread(process.fatal.fail, error)
    await asyncio.to_thread(process.fatal.fail, RuntimeError("a consequence"))
    assert await serving == EXIT_FATAL
    assert process.fatal.error is error
    assert process.happened == ["start", "started", "stop"]


async def test_a_fatal_error_cuts_a_drain_short():
    """Work that can no longer finish is not waited for."""
    process = ScriptedProcess()
    process.signal_at = {"started": signal.SIGTERM}
    serving = asyncio.create_task(serve(process, DRAIN_S))
    await process.reached("drain")
    process.fatal.fail(RuntimeError("too bad"))
    async with asyncio.timeout(DRAIN_S / 2):
        assert await serving == EXIT_FATAL
    assert process.happened[-1] == "stop"


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("port in use"), EXIT_CONFIG), (RuntimeError("no"), EXIT_FATAL)]
)
async def test_a_failed_start_frees_what_was_begun(error: Exception, code: int):
    """And tells misconfiguration from failure."""
    process = ScriptedProcess()
    process.start_error = error
    assert await serve(process, DRAIN_S) == code
    assert process.happened == ["start", "stop"]


async def test_a_signal_during_start_ends_it():
    """Loading a large model can be given up."""
    process = ScriptedProcess()
    process.blocks_start = True
    process.signal_at = {"start": signal.SIGTERM}
    async with asyncio.timeout(DRAIN_S / 2):
        assert await serve(process, DRAIN_S) == EXIT_OK
    assert process.happened == ["start", "stop"]


async def test_signals_are_given_back():
    """Nothing of a served process stays in the loop."""
    process = ScriptedProcess()
    process.signal_at = {"started": signal.SIGTERM}
    process.work_done.set()
    await serve(process, DRAIN_S)
    loop = asyncio.get_running_loop()
    assert not loop.remove_signal_handler(signal.SIGTERM)
    assert not loop.remove_signal_handler(signal.SIGINT)


def test_a_process_that_cannot_be_built_is_misconfigured():
    """Before anything runs."""

    def build() -> ScriptedProcess:
        raise ConfigError("cpus: no such core")

    assert run(build, DRAIN_S) == EXIT_CONFIG


@pytest.mark.parametrize("argv", [["--nonsense"], ["--port", "-5"], ["--otlp-endpoint", "http://127.0.0.1:4317"]])
def test_bad_settings_end_with_a_line_and_a_code(argv: Sequence[str], capsys: pytest.CaptureFixture[str]):
    """No traceback; the line names the program and what is wrong."""
    with restored_logging():
        code = launch(
            ProcessSettings, lambda _: pytest.fail("was built"), prog="baton-test", env_prefix="BATON_TEST_", argv=argv
        )
    assert code == EXIT_CONFIG
    line = capsys.readouterr().err
    assert line.startswith("baton-test: ")
    assert "Traceback" not in line


async def test_a_fatal_error_after_the_end_is_ignored():
    """A thread that dies late must not raise into nowhere."""
    loop = asyncio.new_event_loop()

    async def make() -> Fatal:
        return Fatal()

    fatal = await asyncio.to_thread(lambda: loop.run_until_complete(make()))
    loop.close()
    fatal.fail(RuntimeError("late"))
    assert fatal.error is None
