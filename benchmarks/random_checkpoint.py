"""Makes checkpoints of random weights in a named shape, for measuring where no real ones can be had.

`python -m benchmarks.random_checkpoint SHAPE FOLDER`. A file for each layer is drawn in bfloat16 and written before the
next one is begun, so that no more than the largest of them is in memory. There is no tokenizer: the engine's benchmarks
feed token ids. Where the folder holds the same shape already nothing is done.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import save_file

SEED = 1
_INDEX = "model.safetensors.index.json"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """A Llama model's sizes under transformers' own names."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int = 8192
    rope_theta: float = 500000.0


SHAPES = {
    "8b": LlamaShape(
        num_hidden_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
    ),
    "tiny": LlamaShape(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=512,
    ),
}


def make_checkpoint(shape: LlamaShape, folder: pathlib.Path, device: str = "cpu") -> None:
    """Writes config.json, a safetensors file for each layer and their index; the index last, as the mark of an end.

    Raises:
        OSError: the folder cannot be written.
    """
    config = {
        **asdict(shape),
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    text = json.dumps(config, indent=2) + "\n"
    if (folder / _INDEX).is_file() and (folder / "config.json").read_text() == text:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _INDEX).unlink(missing_ok=True)
    (folder / "config.json").write_text(text)
    rng = torch.Generator(device).manual_seed(SEED)
    places: dict[str, str] = {}
    for name, tensors in part_shapes(shape):
        drawn = {key: _draw(size, rng).cpu() for key, size in tensors.items()}
        save_file(drawn, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=1) + "\n")


def part_shapes(shape: LlamaShape) -> Iterator[tuple[str, Shapes]]:
    """File names and the shapes of what they hold, under the names of transformers' Llama."""
    hidden, ffn, vocab = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    yield "model-embedding.safetensors", {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(shape.num_hidden_layers):
        sizes = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        tensors = {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
        yield f"model-layer-{layer:03}.safetensors", tensors
    yield "model-head.safetensors", {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def _draw(size: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Norms are 1; matrices keep the size of what they multiply, so that activations stay finite in any depth."""
    tensor = torch.empty(size, dtype=torch.bfloat16, device=rng.device)
    return tensor.fill_(1.0) if len(size) == 1 else tensor.normal_(0.0, size[1] ** -0.5, generator=rng)


def main(argv: Sequence[str]) -> int:
    """Makes one; 2 where the shape is unknown."""
    if len(argv) != 2 or argv[0] not in SHAPES:
        sys.stderr.write(f"random_checkpoint: give a shape ({', '.join(SHAPES)}) and a folder\n")
        return 2
    make_checkpoint(SHAPES[argv[0]], pathlib.Path(argv[1]), "cuda" if torch.cuda.is_available() else "cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
