"""What `make setup` installs is pinned, and it notices when that changes."""

import ast
import pathlib
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts import lock, setup

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
WANTED = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["engine"],
        *PROJECT["optional-dependencies"]["dev"],
    ]
]


@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: wanted.name)
def test_every_dependency_is_pinned_within_its_range(wanted: Requirement) -> None:
    """Each package of pyproject.toml has one exact version in constraints.txt, and one that pyproject.toml allows."""
    assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)])


def test_pins_are_versions_that_every_index_has() -> None:
    """No pin has a local label such as +cpu, which only one index knows."""
    assert [name for name, version in PINS.items() if Version(version).local] == []


def test_everything_that_is_needed_is_pinned() -> None:
    """Each installed package that Baton needs, directly or not, has a pin."""
    assert lock.closure("baton", lock.EXTRAS).keys() <= PINS.keys()


def test_a_change_of_the_pins_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """The digest of the environment differs once a file that it was made from differs, and only then."""
    pins = tmp_path / "constraints.txt"
    pins.write_text("a==1\n")
    monkeypatch.setattr(setup, "INPUTS", (pins,))
    before = setup.digest()
    assert setup.digest() == before
    pins.write_text("a==2\n")
    assert setup.digest() != before


def test_an_environment_without_a_stamp_is_not_up_to_date(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Setup runs again where it did not come to its end, and where the environment's Python is gone."""
    monkeypatch.setattr(setup, "STAMP", tmp_path / "stamp")
    assert not setup.is_up_to_date("x")
    (tmp_path / "stamp").write_text("x\n")
    assert setup.is_up_to_date("x") == setup.PYTHON.exists()
    monkeypatch.setattr(setup, "PYTHON", tmp_path / "none")
    (tmp_path / "none").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "none").chmod(0o755)
    assert not setup.is_up_to_date("x")


def test_an_old_python_can_read_the_setup() -> None:
    """Its syntax is old enough that a too old Python gets as far as to say so, and to find a newer one."""
    source = (ROOT / "scripts" / "setup.py").read_text()
    assert ast.parse(source, feature_version=(3, 7)).body
