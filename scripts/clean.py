"""Removes what the other verbs made: the environment, caches, logs and build products. Run by `make clean`."""

import pathlib
import shutil

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = (
    ".venv", ".baton", ".pytest_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache", "build", "dist",
)  # fmt: skip
SOURCES = ("services", "protos", "scripts", "tests", "benchmarks")


def main() -> None:
    """Removes the folders and every __pycache__ of the sources."""
    doomed = [ROOT / name for name in FOLDERS]
    doomed += [path for source in SOURCES for path in (ROOT / source).rglob("__pycache__")]
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    (ROOT / ".coverage").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
