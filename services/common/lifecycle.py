"""The life of a process, from its settings to its exit code.

    start ──▶ running ──SIGTERM/SIGINT──▶ draining ──drained or out of time──▶ stopped   exit 0
                 └──fatal error──▶ stopped   exit 1      (second signal while draining: stopped at once, 128 + signal)

Settings that do not fit end it before it starts, with exit code 2.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

from services.common.config import ConfigError, load_settings
from services.common.log import configure_logging, get_logger
from services.common.rpc.security import use_client_security
from services.common.settings import ProcessSettings
from services.common.tracing import configure_tracing

EXIT_OK = 0
EXIT_FATAL = 1
EXIT_CONFIG = 2

STOP_TIMEOUT_S = 10.0

_log = get_logger(__name__)

S = TypeVar("S", bound=ProcessSettings)


class Fatal:
    """Ends the process when a part of it cannot go on; create it on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._error: asyncio.Future[BaseException] = self._loop.create_future()

    def fail(self, error: BaseException) -> None:
        """Reports an error that the process cannot survive; the first one counts. Thread: any."""
        try:
            self._loop.call_soon_threadsafe(self._set, error)
        except RuntimeError:
            # The loop is closed: the process has ended already.
            return

    @property
    def error(self) -> BaseException | None:
        """The first error, where there was one."""
        return self._error.result() if self._error.done() else None

    async def wait(self) -> BaseException:
        """Waits for the first error; only whoever runs the process does, for as long as it lives."""
        return await asyncio.shield(self._error)

    def _set(self, error: BaseException) -> None:
        if not self._error.done():
            self._error.set_result(error)


class Process(Protocol):
    """A process as `serve` drives it."""

    @property
    def fatal(self) -> Fatal:
        """Through which a part of the process ends it."""
        ...

    async def start(self) -> None:
        """Gets ready to serve; on an error or a cancellation `stop` is called all the same."""
        ...

    async def drain(self, deadline: float) -> None:
        """Takes no new work and returns when the running work is done, or at `deadline` (monotonic)."""
        ...

    async def stop(self) -> None:
        """Frees everything; must work in any state and within seconds."""
        ...


def launch(
    settings_class: type[S], build: Callable[[S], Process], *, prog: str, env_prefix: str, argv: Sequence[str]
) -> int:
    """Loads settings, sets up logs and traces, runs the process; gives the exit code.

    `build` is called on the event loop.
    """
    try:
        settings = load_settings(settings_class, argv, prog=prog, env_prefix=env_prefix).value
        configure_logging(settings.log_level, settings.log_format, process=prog)
        use_client_security(settings.client_security())
        close_tracing = configure_tracing(settings.otlp_endpoint, prog)
    except ConfigError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return EXIT_CONFIG
    try:
        return run(lambda: build(settings), settings.drain_timeout_s)
    finally:
        close_tracing()


def leave(code: int) -> NoReturn:
    """Ends the process at once, its output flushed; for processes whose libraries take seconds to tear down."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(build: Callable[[], Process], drain_timeout_s: float) -> int:
    """Builds a process on a new event loop and serves it until it ends; gives the exit code."""

    async def build_and_serve() -> int:
        try:
            process = build()
        except ConfigError as error:
            return _not_configured(error)
        return await serve(process, drain_timeout_s)

    return asyncio.run(build_and_serve())


async def serve(process: Process, drain_timeout_s: float) -> int:
    """Runs a process until a signal or a fatal error ends it; gives the exit code."""
    signals = _Signals()
    signals.install()
    try:
        return await _serve(process, signals, drain_timeout_s)
    finally:
        await _stop(process)
        signals.remove()


async def _serve(process: Process, signals: "_Signals", drain_timeout_s: float) -> int:
    try:
        is_started = await _unless(process.start(), signals.first.wait(), process.fatal.wait())
    except ConfigError as error:
        return _not_configured(error)
    except Exception as error:  # noqa: BLE001 - whatever kept it from starting ends the process
        _log.error("process_start_failed", exc_info=error)
        return EXIT_FATAL
    if is_started:
        _log.info("process_started")
        await _unless(signals.first.wait(), process.fatal.wait())
    error = process.fatal.error
    if error is not None:
        _log.error("process_failed", exc_info=error)
        return EXIT_FATAL
    if not is_started:
        return EXIT_OK
    return await _drain(process, signals, drain_timeout_s)


async def _drain(process: Process, signals: "_Signals", drain_timeout_s: float) -> int:
    _log.info("process_draining", timeout_s=drain_timeout_s)
    started = time.monotonic()
    try:
        async with asyncio.timeout(drain_timeout_s + 1.0):
            drain = process.drain(started + drain_timeout_s)
            is_done = await _unless(drain, signals.second.wait(), process.fatal.wait())
    except TimeoutError:
        _log.warning("process_drain_timed_out", timeout_s=drain_timeout_s)
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - a failed drain must still lead to the stop
        _log.error("process_drain_failed", exc_info=error)
        return EXIT_FATAL
    if process.fatal.error is not None:
        _log.error("process_failed", exc_info=process.fatal.error)
        return EXIT_FATAL
    if not is_done:
        _log.warning("process_drain_interrupted")
        return 128 + signals.last
    _log.info("process_drained", seconds=round(time.monotonic() - started, 3))
    return EXIT_OK


async def _stop(process: Process) -> None:
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.stop()
    except Exception as error:  # noqa: BLE001 - the process ends anyway; the log says what was left behind
        _log.error("process_stop_failed", exc_info=error)
    else:
        _log.info("process_stopped")


def _not_configured(error: ConfigError) -> int:
    _log.error("process_misconfigured", error=str(error))
    return EXIT_CONFIG


async def _unless(main: Coroutine[Any, Any, Any], *others: Coroutine[Any, Any, Any]) -> bool:
    """Awaits `main`; False where one of the others ended first. What is left over is cancelled and awaited.

    Cancel: safe; everything is cancelled.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in (main, *others)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return False
        await tasks[0]
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Signals:
    """SIGTERM and SIGINT as events; the handlers are those of the running loop."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.last = 0

    def install(self) -> None:
        for number in self._SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)

    def remove(self) -> None:
        for number in self._SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _receive(self, number: int) -> None:
        self.last = number
        (self.second if self.first.is_set() else self.first).set()
