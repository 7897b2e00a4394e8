"""Writes the pages of docs/ that follow from the code: configuration, metrics, errors. With --check, compares them.

Run by `make docs` and `make check`. What a setting, a metric or an error means is written where it is defined; these
pages only collect it.
"""

import argparse
import pathlib
import sys
import textwrap
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry

from services.cli.up_settings import UpSettings
from services.common import errors
from services.common.config import Settings, describe_settings
from services.common.rpc.metrics import RpcServerMetrics
from services.common.types import Load, Membership
from services.decode.config import DecodeSettings
from services.decode.metrics import DecodeMetrics
from services.frontend.config import FrontendSettings
from services.frontend.connection import Connection
from services.frontend.member_rules import MemberRules
from services.frontend.members import Members
from services.frontend.metrics import FrontendMetrics
from services.frontend.resource_collector import ResourceCollector
from services.frontend.router import Router
from services.frontend.routing_collector import RoutingCollector
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.metrics import DirectoryMetrics
from services.prefill.config import PrefillSettings
from services.prefill.metrics import PrefillMetrics
from services.worker.load_collector import COUNTERS, LoadCollector
from services.worker.metrics import RoleSwitches

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GENERATED = "<!-- Written by `make docs`; change the code that it describes instead. -->\n"

SETTINGS: dict[str, tuple[type[Settings], str]] = {
    "baton frontend": (FrontendSettings, "BATON_FRONTEND_"),
    "baton prefill": (PrefillSettings, "BATON_PREFILL_"),
    "baton decode": (DecodeSettings, "BATON_DECODE_"),
    "baton kvtransfer": (DirectorySettings, "BATON_KVTRANSFER_"),
    "baton up": (UpSettings, "BATON_UP_"),
}


def configuration() -> str:
    """docs/configuration.md."""
    parts = [
        "# Configuration\n",
        GENERATED,
        textwrap.dedent("""\
            A setting can be given as a flag, as an environment variable, or in a file (`--config FILE`, TOML, YAML or
            JSON, with the names below as keys). A flag wins over the environment, the environment over the file, the
            file over the default. Unknown names and values that do not fit are errors that say where they came from.
            `--print-config` prints every value with its origin.

            `baton up` starts the other processes; its own settings come last. Environment variables of the other
            processes reach them through it, unless it sets the same thing by a flag.
            """),
    ]
    for command, (cls, prefix) in SETTINGS.items():
        summary = " ".join((cls.__doc__ or "").split("\n\n", maxsplit=1)[0].split())
        parts.append(f"## {command}\n\n{summary} Environment variables begin with `{prefix}`.\n")
        rows = [
            (
                f"`{doc.flag}`",
                f"`{doc.env}`",
                f"`{doc.type}`",
                f"`{doc.default}`" if doc.default else "",
                doc.description,
            )
            for doc in describe_settings(cls, prefix)
        ]
        parts.append(table(("flag", "variable", "type", "default", "meaning"), rows))
    return "\n".join(parts)


class WorkerAtRest:
    """A worker state with every counter of a tier that the exporter knows, for the names alone."""

    def __init__(self, other_side: str) -> None:
        self._other_side = other_side

    def load(self) -> Load:
        """All zero."""
        return Load(counters={name: 0 for name in COUNTERS if not name.startswith(self._other_side)})


async def nobody() -> AsyncGenerator[Membership, None]:
    """A membership that nothing is in, for the names alone."""
    yield Membership()


def registries() -> Iterator[tuple[str, CollectorRegistry]]:
    """The metrics of each process, as it registers them."""
    own = {
        "prefill": PrefillMetrics,
        "decode": DecodeMetrics,
        "frontend": FrontendMetrics,
        "kvtransfer": DirectoryMetrics,
    }
    for process, metrics in own.items():
        registry = CollectorRegistry()
        metrics(registry)
        if process in ("prefill", "decode"):
            RoleSwitches(registry)
            LoadCollector(f"baton_{process}", WorkerAtRest("sink_" if process == "prefill" else "source_"), registry)  # type: ignore[arg-type]
        if process == "frontend":
            members = Members(nobody, "", Connection, rules=MemberRules())  # type: ignore[arg-type]
            RoutingCollector(Router(), members, registry)
            ResourceCollector(members.stats, registry)
        yield process, registry


def metrics_page() -> str:
    """docs/metrics.md."""
    parts = [
        "# Metrics\n",
        GENERATED,
        textwrap.dedent("""\
            Every process serves Prometheus metrics over HTTP at `/metrics` on its metrics port (that of gRPC plus
            1000). Names are `baton_<service>_<noun>_<unit>`, units are seconds, bytes and tokens. A colocated worker
            is a decode process and its load is named `baton_colocated_…`. Stage names are those of the response's
            `StageTimes` and of the trailing metadata.
            """),
    ]
    shared = CollectorRegistry()
    RpcServerMetrics(shared)
    for title, registry in [("every process", shared), *registries()]:
        parts.append(f"## {title}\n")
        parts.append(table(("metric", "type", "labels", "meaning"), sorted(families(registry))))
    return "\n".join(parts)


def families(registry: CollectorRegistry) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, labels and meaning of every metric of a registry."""
    for collector in list(registry._collector_to_names):  # the registry has no public list of its collectors
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            found = labels or ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
            yield f"`{name}`", family.type, found, family.documentation


def errors_page() -> str:
    """docs/errors.md."""
    tree = textwrap.dedent((errors.__doc__ or "").split("\n\n")[1])
    rows = [
        (f"`{name}`", f"`{cls.code.name}`", cls.retry.value.replace("_", " "), " ".join((cls.__doc__ or "").split()))
        for name, cls in sorted(errors.error_classes().items())
    ]
    return "\n".join(
        [
            "# Errors\n",
            GENERATED,
            textwrap.dedent("""\
                Every failed call ends with one of these. The gRPC status carries `google.rpc.ErrorInfo` in its details
                with the class as `reason` and `baton` as `domain`, `RetryInfo` where waiting helps, and `BadRequest`
                with every wrong field of an `InvalidRequest`. Baton's own clients raise the same class that the server
                raised.
                """),
            f"```\n{tree}\n```\n",
            table(("error", "gRPC status", "who may try again", "meaning"), rows),
        ]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines, ""])


PAGES = {"configuration.md": configuration, "metrics.md": metrics_page, "errors.md": errors_page}


def stale() -> list[str]:
    """Pages that differ from what the code says."""
    wrong: list[str] = []
    for name, write in PAGES.items():
        path = DOCS / name
        if not path.exists() or path.read_text() != write():
            wrong.append(name)
    return wrong


def main() -> None:
    """Writes the pages, or with --check compares them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        if wrong := stale():
            sys.exit(f"out of date, run `make docs`: {', '.join(wrong)}")
        return
    DOCS.mkdir(exist_ok=True)
    for name, write in PAGES.items():
        (DOCS / name).write_text(write())


if __name__ == "__main__":
    main()
