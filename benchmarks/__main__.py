"""`python -m benchmarks WORD [options]`, or `baton bench WORD [options]`; without a word it is serve."""

import importlib
import sys
from collections.abc import Sequence

# Imported on demand: what asks a frontend or a worker at an address needs no torch.
COMMANDS = {
    "serve": "a cluster through its public API: split against colocated, or one that runs",
    "goodput": "the highest request rate at which latency targets are met, of the same targets",
    "crossover": "the lengths of prompts at which split and colocated clusters change places",
    "decode": "decode steps of an engine or of one worker: time per output token by batch and context",
    "prefill": "prompts on an engine or on one worker: tokens per second by length and batch",
    "quality": "perplexity of a checkpoint in each precision, on fresh stories of the demo model's kind",
    "peers": "other engines on the same checkpoints and prompts, in turn with Baton",
    "transfer": "the handoff, between two processes or from one prefill worker",
    "control": "the control plane alone: schedulers, and a frontend and a worker whose engine costs nothing",
    "growth": "how costs grow: with context, batch, queued requests and streams",
    "hedging": "first tokens with hedging and without, where one of two workers stands still now and then",
    "plot": "no measurement: draws JSON reports as PNG",
}
_REMEDIES = dict.fromkeys(("torch", "transformers", "numpy"), "pip install 'baton[engine]'")
_REMEDIES["scripts"] = "run it in a checkout of the repository"
_MODULES = {"peers": "benchmarks.peers.compare"}


def main(argv: Sequence[str]) -> int:
    """Runs one benchmark and returns the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n\n{_words()}\n\n`--help` after a word lists its options.\n")
        return 0
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("serve", argv)
    if name not in COMMANDS:
        sys.stderr.write(f"benchmarks: there is no {name!r}; there are\n{_words()}\n")
        return 2
    try:
        return importlib.import_module(_MODULES.get(name, f"benchmarks.{name}")).main(rest)
    except ModuleNotFoundError as error:
        if error.name not in _REMEDIES:
            raise
        sys.stderr.write(f"benchmarks: {name} needs {error.name} here; {_REMEDIES[error.name]}\n")
        return 2


def _words() -> str:
    return "\n".join(f"  {known:9} {what}" for known, what in COMMANDS.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
