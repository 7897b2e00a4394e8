"""Where settings come from, and what is refused."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from services.common.config import ConfigError, Loaded, Settings, describe_settings, load_settings

PREFIX = "BATON_TEST_"


class Sample(Settings):
    """Settings for tests."""

    block_size: int = Field(16, ge=1, description="Tokens in a block.")
    name: str = Field("", description="A name, 100 % free.")
    dtype: Literal["auto", "float32"] = Field("auto", description="Element type.")
    is_fast: bool = Field(True, description="Whether to hurry.")
    limit: float | None = Field(None, description="A limit.")


def load(*argv: str, **environ: str) -> Loaded[Sample]:
    variables = {f"{PREFIX}{name}": value for name, value in environ.items()}
    return load_settings(Sample, argv, prog="sample", env_prefix=PREFIX, environ=variables)


def written(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_defaults_alone():
    """Nothing set: every origin is the default."""
    loaded = load()
    assert loaded.value == Sample()
    assert set(loaded.origins.values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path):
    """One setting from each source, all of them present in the weaker ones; origins say which won."""
    file = written(tmp_path, "c.toml", 'block_size = 1\nname = "file"\ndtype = "float32"\n')
    loaded = load("--config", file, "--block-size", "3", BLOCK_SIZE="2", NAME="env")
    assert (loaded.value.block_size, loaded.value.name, loaded.value.dtype) == (3, "env", "float32")
    assert loaded.origins == {
        "block_size": "flag --block-size",
        "name": f"env {PREFIX}NAME",
        "dtype": f"file {file}",
        "is_fast": "default",
        "limit": "default",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", "block-size = 8\nis_fast = false"),
        ("c.yaml", "block-size: 8\nis_fast: false"),
        ("c.yml", "block_size: 8\nis_fast: no"),
        ("c.json", '{"block_size": 8, "is_fast": false}'),
    ],
)
def test_every_file_format(tmp_path: Path, name: str, text: str):
    """TOML, YAML and JSON, keys with dashes or underscores; the environment can name the file."""
    loaded = load(CONFIG=written(tmp_path, name, text))
    assert (loaded.value.block_size, loaded.value.is_fast) == (8, False)


def test_an_empty_file_is_no_settings(tmp_path: Path):
    """A file with comments only is fine."""
    assert load("--config", written(tmp_path, "c.yaml", "# nothing\n")).value == Sample()


@pytest.mark.parametrize(("argv", "is_fast"), [(["--is-fast"], True), (["--no-is-fast"], False), ([], True)])
def test_boolean_flags(argv: list[str], is_fast: bool):
    """Both directions have a flag."""
    assert load(*argv).value.is_fast is is_fast


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.toml", "blok_size = 8", "unknown key blok_size; did you mean block_size"),
        ("c.toml", "block_size = ", "not valid toml"),
        ("c.yaml", "- 1", "holds list"),
        ("c.json", "{", "not valid json"),
        ("c.ini", "block_size = 8", "ends in none of"),
        ("c.toml", "block_size = 0", "block_size: Input should be greater than or equal to 1 (is 0)"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, text: str, says: str):
    """Every message has the path and what is wrong."""
    file = written(tmp_path, name, text)
    with pytest.raises(ConfigError) as caught:
        load("--config", file)
    assert str(caught.value).startswith(f"file {file}")
    assert says in str(caught.value)


def test_a_missing_file_is_named():
    """Not a traceback."""
    with pytest.raises(ConfigError, match=r"file /nowhere/c.toml: cannot be read: No such file"):
        load("--config", "/nowhere/c.toml")


def test_an_unknown_variable_is_named():
    """A misspelled variable must not be ignored in silence."""
    with pytest.raises(ConfigError, match=r"^env BATON_TEST_BLOCKSIZE: unknown .* mean BATON_TEST_BLOCK_SIZE"):
        load(BLOCKSIZE="8")


def test_variables_of_others_are_left_alone():
    """Other prefixes, and what Kubernetes injects for a Service named baton-test."""
    links = {
        "PORT": "tcp://10.0.0.1:9100",
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "9100",
        "SERVICE_PORT_GRPC": "9100",
        "PORT_9100_TCP": "tcp://10.0.0.1:9100",
        "PORT_9100_TCP_ADDR": "10.0.0.1",
    }
    assert load(**links).value == Sample()
    environ = {"BATON_OTHER_X": "1", "PATH": "/bin"}
    assert load_settings(Sample, [], prog="sample", env_prefix=PREFIX, environ=environ).value == Sample()


def test_a_bad_value_names_its_origin_for_every_problem():
    """Two wrong settings from two sources are both reported."""
    with pytest.raises(ConfigError) as caught:
        load("--dtype", "int3", BLOCK_SIZE="many")
    first, second = sorted(str(caught.value).splitlines())
    assert first.startswith("env BATON_TEST_BLOCK_SIZE: block_size: ")
    assert "'many'" in first
    assert second.startswith("flag --dtype: dtype: ")


@pytest.mark.parametrize("argv", [["--bloc", "1"], ["extra"], ["--block-size"], ["--block", "8"]])
def test_a_wrong_command_line_is_an_error(argv: list[str]):
    """Also abbreviations, which would break when a setting is added."""
    with pytest.raises(ConfigError, match="--help"):
        load(*argv)


def test_print_config_shows_values_and_origins(capsys: pytest.CaptureFixture[str]):
    """And ends the process with success."""
    with pytest.raises(SystemExit) as caught:
        load("--print-config", "--block-size", "8")
    assert caught.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["block_size", "8", "flag", "--block-size"]
    assert lines[1] == ["name", "''", "default"]


def test_help_names_every_flag_and_variable(capsys: pytest.CaptureFixture[str]):
    """Generated from the descriptions, a percent sign included."""
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for doc in describe_settings(Sample, PREFIX):
        assert doc.flag in text
        assert doc.env in text
        assert doc.description in text
    assert "SUPPRESS" not in text


def test_settings_are_described():
    """Name, flag, variable, type, default and meaning, for documentation."""
    block_size, _, dtype, is_fast, limit = describe_settings(Sample, PREFIX)
    assert (block_size.flag, block_size.env) == ("--block-size", "BATON_TEST_BLOCK_SIZE")
    assert (block_size.type, block_size.default) == ("int", "16")
    assert dtype.type == "auto|float32"
    assert is_fast.default == "true"
    assert (limit.type, limit.default) == ("float", "none")


def test_a_setting_without_a_description_is_a_bug():
    """Found when the class is first used."""

    class Bare(Settings):
        size: int = 1

    with pytest.raises(TypeError, match=r"Bare\.size has no description"):
        describe_settings(Bare, PREFIX)


def test_settings_do_not_change():
    """Frozen."""
    with pytest.raises(ValueError, match="frozen"):
        Sample().block_size = 3  # type: ignore[misc]
