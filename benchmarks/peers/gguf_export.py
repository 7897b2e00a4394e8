"""Writes a Llama checkpoint as GGUF, for llama.cpp. Runs in its environment: python -m … CHECKPOINT FILE bf16|q8_0.

For dense Llama shapes with bfloat16 weights and a byte-level BPE tokenizer, as the benchmark's checkpoints have them.
"""

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

_TYPES = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
_FILE_TYPES = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export(checkpoint: pathlib.Path, target: pathlib.Path, quantization: str) -> None:
    """Writes the file; complete or not at all."""
    config = json.loads((checkpoint / "config.json").read_text())
    partial = target.with_name(target.name + ".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    _write_shape(writer, config)
    writer.add_file_type(_FILE_TYPES[quantization])
    _write_tokenizer(writer, checkpoint, config)
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, weight in _weights(file):
            _write_weight(writer, config, name, weight, _TYPES[quantization])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def _write_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta") or config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_tokenizer(writer: gguf.GGUFWriter, checkpoint: pathlib.Path, config: dict[str, Any]) -> None:
    """The vocabulary; prompts are token ids, so that it only has to be complete."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    named = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    named |= special
    numbers = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([named.get(number, f"<unused {number}>") for number in numbers])
    kinds = (gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in numbers)
    writer.add_token_types(list(kinds))
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(_first(config["eos_token_id"]))


def _write_weight(
    writer: gguf.GGUFWriter, config: dict[str, Any], name: str, weight: np.ndarray, kind: gguf.GGMLQuantizationType
) -> None:
    if name in _OUTER:
        target = _OUTER[name]
    else:
        _, _, layer, inner = name.split(".", 3)
        target = f"blk.{layer}.{_INNER[inner.removesuffix('.weight')]}.weight"
    if "q_proj" in name:
        weight = _interleaved(weight, config["num_attention_heads"])
    if "k_proj" in name:
        weight = _interleaved(weight, config["num_key_value_heads"])
    weight = np.ascontiguousarray(weight)
    if weight.ndim == 1:
        writer.add_tensor(target, weight)
    else:
        writer.add_tensor(target, gguf.quants.quantize(weight, kind), raw_dtype=kind)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in ggml's order: pairs that rotate together lie side by side, not half a head apart."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(0, 2, 1, 3).reshape(rows, columns)


def _weights(file: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every bfloat16 tensor of a safetensors file, as float32."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                sys.exit(f"{name} is {entry['dtype']}; only BF16 checkpoints are exported")
            begin, end = entry["data_offsets"]
            stream.seek(8 + length + begin)
            halves = np.frombuffer(stream.read(end - begin), dtype=np.uint16)
            yield name, (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def _first(ids: int | list[int]) -> int:
    return ids[0] if isinstance(ids, list) else ids


if __name__ == "__main__":
    export(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3])
