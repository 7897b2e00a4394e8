"""Checks that files and functions stay small enough to be read at once. Run by `make check`.

A file has at most 250 lines, a test file 300; with a reason in LONG_FILES, 350. A function has at most 60 lines and 6
parameters besides self; tests, commands and what WIDE_FUNCTIONS lists with a reason may have more parameters. An entry
that is no longer needed is an error too: the lists only shrink.
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOTS = ("services", "scripts", "tests", "benchmarks")
MAX_FILE_LINES = 250
MAX_TEST_FILE_LINES = 300
HARD_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6

# Path: why it is one file nevertheless.
LONG_FILES: dict[str, str] = {}

# Path and function: who else decides its parameters.
WIDE_FUNCTIONS: dict[str, str] = {
    "services/engine/attention/hook.py:_attention": "transformers calls it, through its attention interface",
}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: pathlib.Path = ROOT) -> Iterator[pathlib.Path]:
    """Every Python file that people write."""
    for name in ROOTS:
        yield from sorted((root / name).rglob("*.py"))


def file_complaints(path: str, lines: int) -> Iterator[str]:
    """What is wrong with the length of a file."""
    soft = MAX_TEST_FILE_LINES if path.startswith("tests/") else MAX_FILE_LINES
    limit = HARD_FILE_LINES if path in LONG_FILES else soft
    if lines > limit:
        yield f"{path}: {lines} lines, at most {limit}: split it by its nouns"
    elif path in LONG_FILES and lines <= soft:
        yield f"{path}: {lines} lines, no longer needs its entry in LONG_FILES"


def function_complaints(path: str, tree: ast.AST) -> Iterator[str]:
    """What is wrong with the sizes of a file's functions."""
    for node in ast.walk(tree):
        if not isinstance(node, FunctionNode):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        if _is_bounded(path, node) and _parameters(node) > MAX_PARAMETERS:
            yield f"{path}:{node.lineno}: {node.name} has {_parameters(node)} parameters, at most {MAX_PARAMETERS}"


def complaints(root: pathlib.Path = ROOT) -> list[str]:
    """Everything that is too large, and every entry of LONG_FILES without a file."""
    found: list[str] = []
    known: set[str] = set()
    functions: set[str] = set()
    for source in sources(root):
        path = source.relative_to(root).as_posix()
        text = source.read_text()
        known.add(path)
        tree = ast.parse(text)
        functions |= {f"{path}:{node.name}" for node in ast.walk(tree) if isinstance(node, FunctionNode)}
        found += file_complaints(path, len(text.splitlines()))
        found += function_complaints(path, tree)
    found += [f"{path}: listed in LONG_FILES and does not exist" for path in sorted(LONG_FILES.keys() - known)]
    found += [
        f"{name}: listed in WIDE_FUNCTIONS and does not exist" for name in sorted(WIDE_FUNCTIONS.keys() - functions)
    ]
    return found


def _parameters(node: FunctionNode) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return sum(name not in ("self", "cls") for name in names)


def _is_bounded(path: str, node: FunctionNode) -> bool:
    """False for tests, for listed functions and for commands of the `baton` tool, whose parameters are its flags."""
    if path.startswith("tests/") or f"{path}:{node.name}" in WIDE_FUNCTIONS:
        return False
    return "typer." not in ast.unparse(node.args)


def main() -> None:
    """Prints what is too large and fails where anything is."""
    found = complaints()
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
