"""The `baton` command itself."""

import os
import pathlib
import subprocess
import sys

import pytest

from services.cli import main, secure
from services.common.rpc.security import ClientSecurity, client_security, use_client_security
from tests.harness.certificates import TOKEN, Authority, token_file

SUBPROCESS_TIMEOUT_S = 60


def baton(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command as a user does."""
    command = [sys.executable, "-c", "from services.cli.main import main; main()", *arguments]
    plain = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(command, env=plain, capture_output=True, text=True, timeout=SUBPROCESS_TIMEOUT_S, check=False)


def test_help_names_every_command() -> None:
    """`baton --help` lists what operators need."""
    shown = baton("--help").stdout
    for command in (
        "up",
        "generate",
        "status",
        "drain",
        "role",
        "health",
        "version",
        "bench",
        "frontend",
        "prefill",
        "decode",
        "kvtransfer",
    ):
        assert f" {command} " in shown


def test_an_unknown_command_says_where_help_is() -> None:
    """A typo ends with exit code 2 and a pointer to the help, without a traceback."""
    done = baton("ferry")
    assert done.returncode == 2
    assert "No such command 'ferry'" in done.stderr
    assert "baton --help" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_gets_its_own_flags() -> None:
    """`baton kvtransfer FLAGS` is the directory process with those flags."""
    done = baton("kvtransfer", "--port", "1234", "--print-config")
    assert done.returncode == 0
    assert any(line.split() == ["port", "1234", "flag", "--port"] for line in done.stdout.splitlines())


def test_every_benchmark_is_a_word() -> None:
    """`baton bench` is `python -m benchmarks`: it lists its words, and each has options of its own."""
    listed = baton("bench", "--help").stdout
    assert all(f"  {word} " in listed for word in ("serve", "prefill", "decode", "transfer"))
    assert "--step-tokens" in baton("bench", "prefill", "--help").stdout


def test_a_processs_wrong_flag_is_its_own_error() -> None:
    """The exit code and message of the started process are the command's."""
    done = baton("kvtransfer", "--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr


@pytest.mark.parametrize("command", [("drain",), ("health",), ("role", "decode")], ids=lambda command: command[0])
def test_a_worker_that_is_not_there_is_one_clear_line(command: tuple[str, ...]) -> None:
    """Nobody at the address: exit code 1 and one line that names it."""
    done = baton(command[0], "127.0.0.1:1", *command[1:])
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_worker_without_torch_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slim installation answers in one line and with the exit code of wrong settings, not with a traceback."""
    monkeypatch.setattr(main.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main._become("services.prefill", [])
    assert caught.value.code == 2
    assert "baton[engine]" in capsys.readouterr().err


def test_bench_shows_who_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Options before `bench` reach the process that measures, which shows to an address what they say."""
    authority = Authority(tmp_path)
    mine = authority.issue()
    tokens = token_file(tmp_path / "tokens", TOKEN)
    became: list[list[str]] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "execv", lambda program, argv: became.append(argv))
    before = client_security()
    try:
        options = ["--tls-ca", mine.ca, "--tls-cert", mine.cert, "--tls-key", mine.key, "--token-file", tokens]
        main.app([*options, "bench", "--address", "there:1"], standalone_mode=False)
        use_client_security(ClientSecurity())
        secure.use_variables()
        shown = client_security()
    finally:
        use_client_security(before)
    assert became[0][1:] == ["-m", "benchmarks", "--address", "there:1"]
    assert shown.tls is not None
    assert shown.tokens is not None
