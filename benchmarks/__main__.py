"""`python -m benchmarks [serve|decode|prefill|transfer] [options]`; without a word it is serve."""

import importlib
import sys
from collections.abc import Sequence

# Imported on demand: serve with --address needs no torch.
COMMANDS = {
    "serve": "a cluster through its public API: split against colocated, or one that runs",
    "decode": "the engine alone: time per output token by batch and context",
    "prefill": "the engine alone: prompt tokens per second by length and batch",
    "transfer": "the handoff alone: KV between two processes against a raw socket",
}


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark and returns the exit code."""
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("serve", argv)
    if name not in COMMANDS:
        known = "\n".join(f"  {known:9} {what}" for known, what in COMMANDS.items())
        sys.stderr.write(f"benchmarks: there is no {name!r}; there are\n{known}\n")
        return 2
    return importlib.import_module(f"benchmarks.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
