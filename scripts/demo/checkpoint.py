"""The checkpoint: its configuration, and writing it in ordinary Hugging Face form.

Weights are stored in bfloat16. The folder is written beside its place and then moved in file by
file, so that a reader never finds half a file.
"""

import json
import os
import pathlib
import shutil

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from scripts.demo import tokenizer as vocabulary


def config(tokenizer: Tokenizer) -> LlamaConfig:
    """Returns the model's configuration: a Llama with grouped attention and tied embeddings."""
    ids = {name: tokenizer.token_to_id(name) for name in vocabulary.SPECIALS}
    return LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        vocab_size=vocabulary.VOCAB_SIZE,
        max_position_embeddings=vocabulary.CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=ids[vocabulary.BOS],
        eos_token_id=[ids[vocabulary.EOS], ids[vocabulary.END]],
        pad_token_id=ids[vocabulary.PAD],
    )


def publish(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: pathlib.Path) -> int:
    """Writes model and tokenizer to a folder, leaving its other files alone.

    Returns:
        The bytes of all files written.
    """
    fresh = folder.with_name(f".{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    rounded = LlamaForCausalLM(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = _generation(model.config)
    rounded.save_pretrained(fresh)
    vocabulary.save(tokenizer, fresh)
    _spell_for_older_readers(fresh / "config.json")
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for path in sorted(fresh.iterdir()):
        written += path.stat().st_size
        path.chmod(0o644)
        os.replace(path, folder / path.name)
    fresh.rmdir()
    return written


def _generation(config: LlamaConfig) -> GenerationConfig:
    """Returns the defaults for generation: greedy, because the model is for exact answers."""
    return GenerationConfig(
        do_sample=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )


def _spell_for_older_readers(path: pathlib.Path) -> None:
    """Adds the names that readers of the format's older versions look for."""
    content = json.loads(path.read_text())
    content["torch_dtype"] = "bfloat16"
    content.setdefault("rope_theta", 10000.0)
    path.write_text(json.dumps(content, indent=2) + "\n")
