"""How the tree is kept: packages, names, docstrings."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("services", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = [path for path in SOURCES if path.name.startswith("test_")]
FORBIDDEN_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "base_service.py"}
FORBIDDEN_SUFFIXES = ("Manager", "Handler", "Helper", "Processor", "Impl", "Mixin")


def relative(path: pathlib.Path) -> str:
    """A path as people write it."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=relative)
def test_packages_import_nothing(path: pathlib.Path) -> None:
    """Importing one module of a package never loads its neighbours: an __init__ holds a docstring and nothing else."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_no_file_is_named_after_nothing() -> None:
    """Every file is named after its noun."""
    assert [relative(path) for path in SOURCES if path.name in FORBIDDEN_NAMES] == []


def test_no_class_is_named_after_nothing() -> None:
    """Class names say what a thing is, not that it handles or manages."""
    bad = [
        f"{relative(path)}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and (node.name.endswith(FORBIDDEN_SUFFIXES) or node.name.startswith("Base"))
    ]
    assert bad == []


def test_every_test_states_its_guarantee() -> None:
    """Each test function has a docstring that says what it guarantees."""
    silent = [
        f"{relative(path)}: {node.name}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_generated_code_is_where_imports_find_it() -> None:
    """Every proto has its generated Python beside it, and nothing is left of a proto that is gone."""
    protos = {path.with_suffix("") for path in (ROOT / "protos").rglob("*.proto")}
    made = {path.with_name(path.name.removesuffix("_pb2.py")) for path in (ROOT / "protos").rglob("*_pb2.py")}
    assert protos == made
