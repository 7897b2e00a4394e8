"""Documents say what is true: commands, files and settings that they name exist."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "compose").glob("*.md")),
]
MAKE_VERB = re.compile(r"`?\bmake ([a-z][a-z-]*)\b(?=[`\s)]|$)", re.MULTILINE)
BATON_VERB = re.compile(r"(?:`|\n|bin/)baton ([a-z]+)")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
CODE_PATH = re.compile(r"`((?:services|protos|scripts|tests|compose|docs|benchmarks)/[\w./-]*)`")


def name(path: pathlib.Path) -> str:
    """A path as people write it."""
    return path.relative_to(ROOT).as_posix()


def code(text: str) -> str:
    """What a document marks as code; prose may use the verb "make"."""
    return "\n".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_make_verb_exists(path: pathlib.Path) -> None:
    """Each `make` verb of a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(MAKE_VERB.findall(code(path.read_text()))) <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_link_and_path_exists(path: pathlib.Path) -> None:
    """Each relative link, and each path of this repository in code style, leads somewhere."""
    text = path.read_text()
    missing = [link for link in LINK.findall(text) if not (path.parent / link).exists()]
    missing += [each for each in CODE_PATH.findall(text) if not (ROOT / each).exists()]
    assert missing == []


def test_every_baton_command_exists() -> None:
    """Each command of the documents is one of the `baton` tool's."""
    shown = subprocess.run(
        [sys.executable, "-c", "from services.cli.main import main; main()", "--help"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    used = {verb for path in DOCUMENTS for verb in BATON_VERB.findall(code(path.read_text()))}
    assert "up" in used
    assert {verb for verb in used if f" {verb} " not in shown} == set()


def test_every_make_target_says_what_it_does() -> None:
    """`make help` has a line for each target."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    documented = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    assert targets == documented
