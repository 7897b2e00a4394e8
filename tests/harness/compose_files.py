"""Reads compose/ as Docker Compose does: variables from .env, merge keys, overlays."""

import pathlib
import re
from typing import Any

import yaml

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "compose"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def variables() -> dict[str, str]:
    """What .env sets."""
    lines = (FOLDER / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def load(*names: str) -> dict[str, Any]:
    """A file with overlays on top of it, all variables replaced.

    Raises:
        KeyError: a variable is neither in .env nor has a default.
    """
    merged: dict[str, Any] = {}
    for name in names:
        merged = merge(merged, yaml.safe_load(_substitute((FOLDER / name).read_text())))
    return merged


def merge(base: Any, overlay: Any) -> Any:
    """The overlay wins; mappings merge, lists of an overlay are appended, a command is replaced."""
    if isinstance(base, dict) and isinstance(overlay, dict):
        merged = dict(base)
        for key, value in overlay.items():
            merged[key] = merge(base[key], value) if key in base and key != "command" else value
        return merged
    return [*base, *overlay] if isinstance(base, list) and isinstance(overlay, list) else overlay


def _substitute(text: str) -> str:
    known = variables()

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        return known[name] if default is None else known.get(name, default)

    return _VARIABLE.sub(value, text)
