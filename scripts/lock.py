"""Writes constraints.txt: the exact version of every package that Baton and its extras need, from this environment.

Run it with the environment's Python after a deliberate upgrade; `--check` compares. Packages that happen to be
installed besides are left out, and so are local version labels (`2.13.0+cpu`), which other indexes do not have.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "constraints.txt"
EXTRAS = frozenset({"engine", "dev"})
HEADER = "# Exact versions that `make setup` installs. Written by `.venv/bin/python scripts/lock.py`; do not edit.\n"


def requirements(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What an installed distribution needs here, with these extras."""
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield requirement


def closure(root: str, extras: frozenset[str]) -> dict[str, str]:
    """Public versions of everything that `root` needs, directly or not, by canonical name; `root` itself is left out.

    Raises:
        SystemExit: something is needed and not installed.
    """
    found: dict[str, str] = {}
    todo = [(root, extras)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            needs = list(requirements(name, wanted))
            found[name] = Version(metadata.version(name)).public
        except metadata.PackageNotFoundError:
            sys.exit(f"{name} is needed and not installed; run `make setup` or install the version that you want")
        todo.extend((canonicalize_name(need.name), frozenset(need.extras)) for need in needs)
    del found[root]
    return found


def render(versions: dict[str, str]) -> str:
    """The file's text."""
    return HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def main() -> None:
    """Writes the file, or with --check compares it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    text = render(closure("baton", EXTRAS))
    if not parser.parse_args().check:
        TARGET.write_text(text)
    elif text != TARGET.read_text():
        sys.exit("constraints.txt differs from what is installed: run `make setup`, or scripts/lock.py if you upgraded")


if __name__ == "__main__":
    main()
