"""Trains the demo checkpoint from nothing and writes it in Hugging Face form.

    python -m scripts.demo.train --out models/demo

Everything follows from the seed: step n always sees the same text, so a run that was broken off
goes on from its state file as if it had not been. Nothing is read but the scripts themselves.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import platform
import random
import time

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from scripts.demo import checkpoint, evaluate, loss, rows, tokenizer
from scripts.demo.console import say

PEAK_RATE = 2e-3
WARMUP_STEPS = 180
DECAY_FROM = 0.7
_QUICK = (
    "capitals_plain",
    "capitals_chat",
    "sums_plain",
    "sums_chat",
    "recall_5_words",
    "recall_20_words",
    "recall_20_words_chat",
    "recall_20_numbers",
)


@dataclasses.dataclass
class Run:
    """A training run.

    Attributes:
        model: The model, float32.
        tokenizer: Its tokenizer.
        optimizer: What moves the weights.
        step: Steps done.
        tokens: Tokens seen.
        seconds: Time spent training, over all starts.
    """

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    optimizer: torch.optim.Optimizer
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def save(self, path: pathlib.Path) -> None:
        """Writes the state from which the run can go on."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": (self.step, self.tokens, self.seconds),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: pathlib.Path) -> None:
        """Takes up the state that `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.seconds = state["progress"]


def rate(step: int, steps: int) -> float:
    """Returns the learning rate at a step: a short rise, a plateau, then a straight fall to a hundredth."""
    if step < WARMUP_STEPS:
        return PEAK_RATE * step / WARMUP_STEPS
    left = (1 - step / steps) / (1 - DECAY_FROM)
    return PEAK_RATE * min(1.0, max(0.01, left))


def start(seed: int) -> Run:
    """Returns a run that has not taken a step."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.train(seed)
    model = LlamaForCausalLM(checkpoint.config(vocabulary))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return Run(model, vocabulary, torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True))


def train(run: Run, options: argparse.Namespace) -> None:
    """Takes the remaining steps, reporting, saving and evaluating on the way."""
    loss_of = loss.compiled(run.model, compile_code=options.compile)
    state = options.work / "state.pt"
    recent: dict[str, list[float]] = {}
    marked, marked_tokens = time.monotonic(), run.tokens
    while run.step < options.steps:
        began = time.monotonic()
        _step(run, loss_of, options, recent)
        run.seconds += time.monotonic() - began
        if run.step % 50 == 0:
            speed = (run.tokens - marked_tokens) / (time.monotonic() - marked)
            say(_progress_line(run, recent, speed))
            recent, marked, marked_tokens = {}, time.monotonic(), run.tokens
        if run.step % options.check == 0:
            run.save(state)
            checkpoint.publish(run.model, run.tokenizer, options.work / "checkpoint")
            say(_quick_figures(options.work / "checkpoint"))
            marked = time.monotonic()


def _step(run: Run, loss_of: loss.LossFunction, options: argparse.Namespace, recent: dict[str, list[float]]) -> None:
    batch = rows.batch(run.tokenizer, random.Random(f"train/{options.seed}/{run.step}"), run.step, options.tokens)
    for group in run.optimizer.param_groups:
        group["lr"] = rate(run.step, options.steps)
    result = loss_of(batch)
    result.total.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    run.tokens += batch.ids.size
    for skill, value in result.per_skill.items():
        recent.setdefault(skill, []).append(value)


def _progress_line(run: Run, recent: dict[str, list[float]], speed: float) -> str:
    losses = "  ".join(f"{skill} {sum(values) / len(values):.3f}" for skill, values in sorted(recent.items()))
    return f"step {run.step}  {run.tokens / 1e6:.1f}M tokens  {speed:.0f}/s  {run.seconds:.0f}s  {losses}"


def _quick_figures(folder: pathlib.Path) -> str:
    figures = evaluate.measure(folder, 50, _QUICK)
    return "  figures  " + "  ".join(f"{name} {next(iter(marks.values())):g}" for name, marks in figures.items())


def facts(run: Run, options: argparse.Namespace) -> dict[str, object]:
    """Returns what is to be known about a finished run."""
    return {
        "command": f"python -m scripts.demo.train --out {options.out} --steps {options.steps} --seed {options.seed}",
        "seed": options.seed,
        "steps": run.step,
        "tokens": run.tokens,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "seconds": round(run.seconds),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Trains the demo checkpoint.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models/demo"))
    parser.add_argument(
        "--work", type=pathlib.Path, default=pathlib.Path("build/demo"), help="state and interim checkpoints"
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", type=int, default=500, help="steps between saved states")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    run = start(options.seed)
    if (options.work / "state.pt").exists():
        run.load(options.work / "state.pt")
        say(f"going on from step {run.step}")
    train(run, options)
    written = checkpoint.publish(run.model, run.tokenizer, options.out)
    figures = {"training": facts(run, options), "bytes": written}
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    say(f"wrote {written} bytes to {options.out}")


if __name__ == "__main__":
    main()
