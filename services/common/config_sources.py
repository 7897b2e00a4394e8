"""Reads raw settings from files and from the environment, and refuses what it does not know."""

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from services.common.config_docs import FieldDoc

_READERS = (".toml", ".yaml", ".yml", ".json")

# Kubernetes gives every container variables for every Service of its namespace; one named baton-prefill yields
# BATON_PREFILL_PORT=tcp://..., which is not meant for us.
_SERVICE_LINK_NAME = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
_SERVICE_LINK_VALUE = re.compile(r"^(tcp|udp|sctp)://")


class ConfigError(Exception):
    """The process cannot run as configured; the message names the origin of what is wrong and what to do."""


def read_file(path: Path, known: Collection[str]) -> dict[str, object]:
    """Reads a flat TOML, YAML or JSON file.

    Raises:
        ConfigError: unreadable, not a mapping, or with a key that is not in `known`.
    """
    if path.suffix not in _READERS:
        raise ConfigError(f"file {path}: ends in none of {', '.join(_READERS)}, so its format is not known")
    try:
        content = _parse(path)
    except OSError as error:
        raise ConfigError(f"file {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"file {path}: is not valid {path.suffix[1:]}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"file {path}: holds {type(content).__name__}, must hold settings as key: value")
    values = {str(key).replace("-", "_"): value for key, value in cast(dict[object, object], content).items()}
    for key in values:
        if key not in known:
            raise ConfigError(f"file {path}: unknown key {key}{_suggestion(key, known)}")
    return values


def read_environment(
    docs: Sequence[FieldDoc], env_prefix: str, environ: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Picks the variables with the prefix; gives (variable, value) by field name.

    `<prefix>CONFIG` names the file and is left out, as are the variables that Kubernetes makes for Services.

    Raises:
        ConfigError: a variable with the prefix names no setting.
    """
    names = {doc.env: doc.name for doc in docs}
    found: dict[str, tuple[str, str]] = {}
    for variable, value in environ.items():
        if not variable.startswith(env_prefix) or variable == f"{env_prefix}CONFIG":
            continue
        if _SERVICE_LINK_VALUE.match(value):
            continue
        if variable in names:
            found[names[variable]] = (variable, value)
        elif not _SERVICE_LINK_NAME.search(variable):
            raise ConfigError(f"env {variable}: unknown variable{_suggestion(variable, names)}")
    return found


def _parse(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".toml":
        return tomllib.loads(data.decode())
    if path.suffix == ".json":
        return json.loads(data)
    return yaml.safe_load(data)


def _suggestion(key: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
