"""Structured logs of every process: one format for our own loggers and for those of libraries.

Event names are past tense, snake case (`worker_registered`); everything else is a key. Prompt text and tokens never
reach a log: their keys are withheld here, whatever a caller passes.
"""

import logging
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

WITHHELD_KEYS = frozenset({"prompt", "text", "token_ids", "content", "messages", "stop"})
WITHHELD = "<withheld>"

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "console", "json")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; calls are cheap enough for once per request, not for once per token."""
    return structlog.stdlib.get_logger(name)


def configure_logging(level: str, fmt: str = "auto", *, stream: TextIO | None = None, **bound: str) -> None:
    """Sends all logs of this process to `stream` (stderr); call it once, at the start.

    Args:
        level: one of `LEVELS`.
        fmt: console (for people), json (one object a line), or auto: console where `stream` is a terminal.
        stream: where the lines go.
        bound: facts that every line carries, such as the process's name.
    """
    target = stream or sys.stderr
    is_console = fmt == "console" or (fmt == "auto" and target.isatty())
    shared = _shared_processors(bound)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_final_processors(is_console, target))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def withhold_prompts(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blanks the keys that hold what users wrote or were answered."""
    for key in WITHHELD_KEYS & event.keys():
        event[key] = WITHHELD
    return event


def _shared_processors(bound: dict[str, str]) -> list[Processor]:
    def add_bound(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        for key, value in bound.items():
            event.setdefault(key, value)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_bound,
        withhold_prompts,
    ]


def _final_processors(is_console: bool, target: TextIO) -> list[Processor]:
    drop_meta: Processor = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if is_console:
        # NOTE: the default prints the local variables of every frame, prompts among them.
        plain = structlog.dev.plain_traceback
        return [drop_meta, structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=plain)]
    to_json: Any = structlog.processors.JSONRenderer(default=str)
    return [drop_meta, structlog.processors.format_exc_info, to_json]
