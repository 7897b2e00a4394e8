"""Generates the Python of the protos beside them, or checks that what is checked in is up to date.

Run by `make protos` and, with --check, by `make check`. The tool versions are pinned in constraints.txt: code made by
grpcio-tools 1.81.1 loads on protobuf 6.33 and 7, code made by newer ones does not load on 6.
"""

import argparse
import filecmp
import pathlib
import sys
import sysconfig
import tempfile

from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate(out: pathlib.Path) -> None:
    """Writes `*_pb2.py`, `*_pb2_grpc.py` and their stubs for every proto under `out`."""
    sources = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    flags = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    scripts = pathlib.Path(sysconfig.get_path("scripts"))
    flags += [f"--plugin=protoc-gen-{kind}={scripts / f'protoc-gen-{kind}'}" for kind in ("mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{PROTOS}", *flags, *sources]) != 0:
        raise SystemExit("protoc failed; its message is above")
    for folder in {(out / s).parent for s in sources}:
        (folder / "py.typed").touch()


def stale(fresh: pathlib.Path) -> list[str]:
    """Names the generated files that differ from, or lack, their checked-in twin, and leftovers without a source."""
    made = {p.relative_to(fresh) for p in fresh.rglob("*") if p.is_file()}
    kept = {p.relative_to(PROTOS) for p in PROTOS.rglob("*_pb2*.py*") if "__pycache__" not in p.parts}
    wrong = [p for p in made if not _same(fresh / p, PROTOS / p)]
    return sorted(str(p) for p in [*wrong, *(kept - made)])


def _same(left: pathlib.Path, right: pathlib.Path) -> bool:
    return right.exists() and filecmp.cmp(left, right, shallow=False)


def main() -> None:
    """Generates in place, or with --check into a temporary directory that is compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        generate(PROTOS)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(pathlib.Path(folder))
        wrong = stale(pathlib.Path(folder))
    if wrong:
        sys.exit("generated code is out of date, run `make protos`: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
