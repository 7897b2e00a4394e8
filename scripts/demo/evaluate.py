"""Marks a checkpoint: exact match per skill on held-out items, and perplexity on fresh stories.

It decodes greedily in float32 through the ordinary loaders, so any checkpoint folder will do:

    python -m scripts.demo.evaluate --model models/demo --items 200
"""

import argparse
import json
import math
import pathlib
import random
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from scripts.demo import exam, stories
from scripts.demo.console import say

_ROWS = 25
_MOST_TOKENS = 48

Figures = dict[str, dict[str, float]]


def measure(folder: pathlib.Path, count: int, papers: tuple[str, ...] = tuple(exam.PAPERS)) -> Figures:
    """Returns the share of exact matches and the number of items for each paper.

    Args:
        folder: The checkpoint.
        count: How many items per paper; a paper with fewer held-out items asks all it has.
        papers: Which papers.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    figures: Figures = {}
    for paper in papers:
        items = exam.items(paper, count)
        right = sum(_marks(model, tokenizer, items[at : at + _ROWS]).count(True) for at in range(0, len(items), _ROWS))
        figures[paper] = {"exact": round(right / len(items), 4), "items": len(items)}
    figures["stories"] = {"perplexity": round(_perplexity(model, tokenizer, count), 3), "items": count}
    return figures


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[str]:
    """Returns the greedy completion of each prompt, up to the mark that ends it."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=_MOST_TOKENS)
    completions = out[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    return [tokenizer.decode(_until(row.tolist(), ends)) for row in completions]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def _marks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[exam.Item]) -> list[bool]:
    completions = complete(model, tokenizer, [item.prompt for item in items])
    cut = [text.split(item.stop)[0] if item.stop else text for text, item in zip(completions, items, strict=True)]
    return [text == item.answer for text, item in zip(cut, items, strict=True)]


def _perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int) -> float:
    """Returns the perplexity per token of fresh stories, each read on its own."""
    rng = random.Random("exam/stories")
    lost, tokens = 0.0, 0
    for _ in range(count):
        ids = tokenizer(stories.document(rng).text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            lost += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(lost / tokens)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Marks a demo checkpoint.")
    parser.add_argument("--model", type=pathlib.Path, default=pathlib.Path("models/demo"))
    parser.add_argument("--items", type=int, default=200, help="items per skill")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file whose `evaluation` is to be replaced")
    options = parser.parse_args()
    started = time.monotonic()
    figures = measure(options.model, options.items)
    for paper, marks in figures.items():
        say(f"{paper:34}" + "  ".join(f"{name} {value:g}" for name, value in marks.items()))
    if options.out:
        content = json.loads(options.out.read_text()) if options.out.exists() else {}
        content["evaluation"] = {
            "command": f"python -m scripts.demo.evaluate --model {options.model} --items {options.items}",
            "decoding": "greedy, float32 arithmetic, the stored bfloat16 weights",
            "seconds": round(time.monotonic() - started, 1),
            "skills": figures,
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
