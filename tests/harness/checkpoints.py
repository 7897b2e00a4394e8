"""Tiny random checkpoints in ordinary Hugging Face format, made once per test session."""

import functools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

VOCAB = 256
MAX_POSITION = 2304
EOS = 1

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITION,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    # Large enough that greedy tokens differ clearly between contexts; tiny weights make every continuation alike.
    "initializer_range": 0.25,
}
_WINDOW = 24

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": _WINDOW, "head_dim": 8},
    "gemma2": {"sliding_window": _WINDOW, "head_dim": 8, "query_pre_attn_scalar": 17, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": _WINDOW, "head_dim": 8, "query_pre_attn_scalar": 17, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": _WINDOW},
    "gpt_neox": {"rotary_pct": 0.5},
}


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="checkpoints-")


@functools.cache
def tiny_checkpoint(architecture: str = "llama", seed: int = 0, dtype: str = "float32", **overrides: Any) -> Path:
    """Directory of a random checkpoint; the same arguments give the same weights.

    Args:
        architecture: A `model_type` of transformers; those in `ARCHITECTURES` have fitting options.
        seed: Of the weights.
        dtype: Of the saved weights.
        overrides: Further options of the configuration.
    """
    options = "-".join(f"{key}={value}" for key, value in sorted(overrides.items())).replace("/", "_")
    path = Path(_root().name) / f"{architecture}-{seed}-{dtype}-{options}"
    config = AutoConfig.for_model(architecture, **{**_COMMON, **ARCHITECTURES.get(architecture, {}), **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        _shake_norms(model)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(path)
    write_tokenizer(path)
    return path


@functools.cache
def reference_model(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """The model as transformers has it, attention by its plainest code (its fused one leaves out logit softcapping)."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="eager").eval()


def reference_tokens(path: Path, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers' own greedy `generate` says, past any end-of-sequence token."""
    model = reference_model(path)
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return out[0, len(prompt) :].tolist()


def random_prompt(length: int, seed: int = 0) -> list[int]:
    """Ids of ordinary tokens."""
    return random.Random(seed * 100_003 + length).choices(range(3, VOCAB), k=length)


def write_tokenizer(path: Path, vocab_size: int = VOCAB) -> None:
    """A byte-level tokenizer.json whose ids fit `vocab_size`: id 3 + byte, as far as they go."""
    vocab = {"<s>": 0, "</s>": EOS, "<pad>": 2}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab_size - len(vocab)]:
        vocab[symbol] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.save(str(path / "tokenizer.json"))


def _shake_norms(model: torch.nn.Module) -> None:
    """Gives norm weights and biases values of their own; fresh ones are all 0 or 1, which would hide mistakes."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
