"""Loads the settings of a process: flags, then environment, then a file, then defaults.

Each value remembers its origin, so that a bad one is reported as, say, `env BATON_PREFILL_BLOCK_SIZE`. Unknown keys are
errors wherever they come from. Knows no particular setting.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from services.common.config_docs import FieldDoc, describe_fields
from services.common.config_sources import ConfigError, read_environment, read_file

DEFAULT_ORIGIN = "default"


class Settings(BaseModel):
    """Settings of a process: flat, frozen, every field described, nothing unknown accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


T = TypeVar("T", bound=Settings)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """Settings and where each value came from: `flag --x`, `env X`, `file PATH` or `default`."""

    value: T
    origins: dict[str, str]


def describe_settings(cls: type[Settings], env_prefix: str) -> list[FieldDoc]:
    """Every setting of a class, in the order of definition, for help texts and documentation."""
    return describe_fields(cls, env_prefix)


def load_settings(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    env_prefix: str,
    environ: Mapping[str, str] | None = None,
) -> Loaded[T]:
    """Reads all sources and validates.

    `--help` and `--print-config` print to stdout and end the process with exit code 0. `--config FILE` (or the
    variable <prefix>CONFIG) names a TOML, YAML or JSON file with the settings' names as keys.

    Raises:
        ConfigError: an unknown key, a value that does not fit, or an unreadable file; names the origin.
    """
    environ = os.environ if environ is None else environ
    docs = describe_fields(cls, env_prefix)
    flags = vars(_parser(prog, docs, cls.__doc__ or "").parse_args(list(argv)))
    wants_print = flags.pop("print_config")
    config_file = flags.pop("config") or environ.get(f"{env_prefix}CONFIG")
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    if config_file:
        for name, value in read_file(Path(config_file), {doc.name for doc in docs}).items():
            values[name], origins[name] = value, f"file {config_file}"
    for name, (variable, value) in read_environment(docs, env_prefix, environ).items():
        values[name], origins[name] = value, f"env {variable}"
    for name, value in flags.items():
        values[name], origins[name] = value, f"flag --{name.replace('_', '-')}"
    loaded = Loaded(_validate(cls, values, origins), {d.name: origins.get(d.name, DEFAULT_ORIGIN) for d in docs})
    if wants_print:
        sys.stdout.write(format_settings(loaded))
        raise SystemExit(0)
    return loaded


def format_settings(loaded: Loaded[T]) -> str:
    """A table of name, value and origin, one setting a line."""
    values = {name: str(getattr(loaded.value, name)) or "''" for name in loaded.origins}
    name_width = max(map(len, values), default=0)
    value_width = max((len(value) for value in values.values()), default=0)
    lines = [f"{n:<{name_width}}  {v:<{value_width}}  {loaded.origins[n]}\n" for n, v in values.items()]
    return "".join(lines)


def _validate(cls: type[T], values: Mapping[str, object], origins: Mapping[str, str]) -> T:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems: list[str] = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else ""
            where = f"{origins.get(name, DEFAULT_ORIGIN)}: {name}" if name else "the settings together"
            given = f" (is {problem['input']!r})" if name else ""
            problems.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}")
        raise ConfigError("\n".join(problems)) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def _parser(prog: str, docs: Sequence[FieldDoc], description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description=description.strip().split("\n\n", maxsplit=1)[0],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Precedence: flag, environment variable, file, default.",
    )
    parser.add_argument("--config", metavar="FILE", default=None, help="TOML, YAML or JSON file with settings")
    parser.add_argument(
        "--print-config", action="store_true", default=False, help="print the effective settings with their origin"
    )
    for doc in docs:
        text = f"{doc.description} [{doc.env}; default: {doc.default or 'empty'}]".replace("%", "%%")
        if doc.type == "bool":
            parser.add_argument(doc.flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(doc.flag, metavar=doc.type, help=text)
    return parser


__all__ = ["ConfigError", "FieldDoc", "Loaded", "Settings", "describe_settings", "format_settings", "load_settings"]
