"""One format for all logs, and no prompt in any of them."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from services.common.log import WITHHELD, WITHHELD_KEYS, configure_logging, get_logger
from tests.harness.logs import restored_logging

SECRET = "the user's own words"


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    with restored_logging():
        yield


def test_json_lines_carry_event_level_logger_time_and_bound_facts():
    """One object a line."""
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream, process="prefill")
    get_logger("services.x").info("worker_registered", blocks=3)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "worker_registered",
        "blocks": 3,
        "level": "info",
        "logger": "services.x",
        "process": "prefill",
    }


@pytest.mark.parametrize("key", sorted(WITHHELD_KEYS))
@pytest.mark.parametrize("fmt", ["json", "console"])
def test_prompts_are_withheld(key: str, fmt: str):
    """Whatever a caller passes under a key that holds what users wrote."""
    stream = io.StringIO()
    configure_logging("info", fmt, stream=stream)
    get_logger("x").info("request_received", **{key: SECRET})
    assert SECRET not in stream.getvalue()
    assert WITHHELD in stream.getvalue()


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_tracebacks_show_no_variables(fmt: str):
    """Local variables hold prompts."""
    stream = io.StringIO()
    configure_logging("info", fmt, stream=stream)

    def broken(words: str) -> None:
        raise KeyError(len(words))

    try:
        broken("".join(["the user's", " own words"]))
    except KeyError as error:
        get_logger("x").error("rpc_failed", exc_info=error)
    assert "KeyError: 20" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_libraries_log_in_the_same_format():
    """And obey the same level."""
    stream = io.StringIO()
    configure_logging("warning", "json", stream=stream)
    logging.getLogger("grpc").info("too quiet")
    logging.getLogger("grpc").warning("connection %s", "lost")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "connection lost"
    assert json.loads(line)["logger"] == "grpc"


def test_levels_filter_our_own_logs():
    """Debug lines cost nothing to read in production."""
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    get_logger("x").debug("detail_seen")
    assert stream.getvalue() == ""


def test_the_request_id_is_bound_for_the_task():
    """Whatever is logged while a request is served carries its id."""
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        get_logger("x").info("chunk_computed")
        logging.getLogger("library").warning("something")
    assert [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()] == ["r-1", "r-1"]


def test_auto_writes_json_where_nobody_watches():
    """A pipe is no terminal."""
    stream = io.StringIO()
    configure_logging("info", "auto", stream=stream)
    get_logger("x").info("process_started")
    assert json.loads(stream.getvalue())["event"] == "process_started"
