"""Measures what a precision costs in quality: perplexity on fresh stories of the kind that the demo model knows."""

import argparse
import dataclasses
import math
import random
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from benchmarks.flags import count
from benchmarks.part import Found, run_part
from benchmarks.part_options import add_out
from scripts.demo import stories
from services.common.checkpoint import resolve_checkpoint
from services.engine.attention.select import CPU_BLOCK_SIZE, make_backend
from services.engine.batch import BatchItem
from services.engine.config import EngineConfig
from services.engine.load import LoadedModel, load_model
from services.engine.packing import pack_step
from services.engine.runner import Runner

# What is compared: a name, and what of the engine's configuration it changes.
VARIANTS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
}


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 2 where the model does not load."""
    return run_part("quality", argv, _parser().parse_args(argv), _measure)


def perplexity(config: EngineConfig, documents: Sequence[Sequence[int]]) -> float:
    """Perplexity per token of documents, each read on its own in one step.

    Raises:
        ConfigError: the model cannot be loaded.
    """
    loaded = load_model(config, lambda line: None)
    lost = sum(_loss(loaded, document) for document in documents)
    return math.exp(lost / sum(len(document) - 1 for document in documents))


def fresh_stories(tokenizer: Tokenizer, number: int) -> Iterator[list[int]]:
    """Token ids of stories that no training saw; the same ones for the same number."""
    rng = random.Random("quality")
    for _ in range(number):
        yield tokenizer.encode(stories.document(rng).text).ids


@torch.inference_mode()
def _loss(loaded: LoadedModel, document: Sequence[int]) -> float:
    """Sum of the negative log-likelihoods of all tokens but the first."""
    shape, blocks = loaded.shape, -(-len(document) // CPU_BLOCK_SIZE)
    size = (shape.num_layers, 2, shape.num_kv_heads, blocks, CPU_BLOCK_SIZE, shape.head_dim)
    kv = torch.zeros(size, dtype=loaded.dtype)
    name = "gather" if loaded.kernels is None else "native"
    runner = Runner(loaded.forward, loaded.slot, make_backend(name, kv, loaded.kernels))
    item = BatchItem(token_ids=document, start=0, block_ids=range(blocks))
    packed = pack_step([item], CPU_BLOCK_SIZE, loaded.device)
    logits = runner.forward(dataclasses.replace(packed, logit_rows=torch.arange(len(document) - 1)))
    return float(functional.cross_entropy(logits.float(), torch.tensor(document[1:]), reduction="sum"))


def _measure(options: argparse.Namespace) -> Found:
    checkpoint = resolve_checkpoint(options.model)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    documents = list(fresh_stories(tokenizer, options.documents))
    rows: list[dict[str, float]] = []
    for change in VARIANTS.values():
        rows.append({"perplexity": perplexity(EngineConfig(checkpoint=checkpoint, device="cpu", **change), documents)})
    tokens = sum(len(document) for document in documents)
    what = {"variants": list(VARIANTS), "documents": len(documents), "tokens": tokens}
    return what, [{"variant": name, **row} for name, row in zip(VARIANTS, rows, strict=True)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks quality", description=__doc__)
    parser.add_argument("--model", default="demo", help="checkpoint: demo, a directory or a hub id (%(default)s)")
    parser.add_argument("--documents", type=count, default=200, help="stories to read (%(default)s)")
    add_out(parser)
    return parser
