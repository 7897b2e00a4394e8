"""What is served, what is refused with which reason, and which modules are swapped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from services.common.config import ConfigError
from services.engine.batch import BatchItem
from services.engine.config import EngineConfig
from services.engine.engine import load_engine
from services.engine.load import choose_device, choose_dtype, load_model
from services.engine.modules import OffsetRmsNorm, RmsNorm, fast_norm
from tests.harness.checkpoints import EOS, MAX_POSITION, VOCAB, tiny_checkpoint


def config_of(path: Path, **settings: object) -> EngineConfig:
    return EngineConfig(checkpoint=path, device="cpu", num_threads=1, **settings)  # type: ignore[arg-type]


def bare_checkpoint(path: Path, **config: object) -> Path:
    """A directory with nothing but a configuration."""
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "t5"}, "t5 is an encoder-decoder"),
        ({"model_type": "vit"}, "vit is no causal language model"),
        ({"model_type": "deepseek_v3"}, r"latent attention \(MLA\)"),
        ({"model_type": "mamba"}, "linear_attention keep no paged KV|state-space"),
        ({"model_type": "jamba"}, "keep no paged KV|state-space"),
        ({"model_type": "qwen3_next"}, "linear_attention keep no paged KV"),
        ({"model_type": "llama4_text"}, "chunked_attention keep no paged KV"),
        ({"model_type": "no-such-family"}, "transformers does not read its config.json"),
        ({"model_type": "llama"}, r"holds no \.safetensors file"),
    ],
)
def test_unsupported_configurations_are_refused_before_loading(
    tmp_path: Path, config: dict[str, object], reason: str
) -> None:
    """The configuration alone is enough to say no and why; no weight file is there."""
    with pytest.raises(ConfigError, match=reason):
        load_model(config_of(bare_checkpoint(tmp_path, **config)), lambda line: None)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("bloom", "does not go through transformers' attention interface"),
        ("gpt_oss", "its attention depends on s_aux"),
    ],
)
def test_unsupported_attention_is_refused_after_the_probe(architecture: str, reason: str) -> None:
    """What the configuration does not show, two tokens do."""
    with pytest.raises(ConfigError, match=reason):
        load_model(config_of(tiny_checkpoint(architecture)), lambda line: None)


def edited_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a tiny checkpoint with other weights."""
    shutil.copytree(tiny_checkpoint(), path, dirs_exist_ok=True)
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_a_checkpoint_with_holes_is_refused(tmp_path: Path) -> None:
    """A missing tensor is not filled with random numbers."""
    path = edited_weights(tmp_path, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ConfigError, match=r"lacks 1 weights .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(config_of(path), lambda line: None)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """A download that stopped early is named as the cause."""
    shutil.copytree(tiny_checkpoint(), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="its weights do not load"):
        load_model(config_of(tmp_path), lambda line: None)


def test_a_closed_engine_does_not_step() -> None:
    """Closing twice is fine; stepping afterwards says why it cannot."""
    engine = load_engine(config_of(tiny_checkpoint(), num_blocks=144))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.step([BatchItem(token_ids=[1], start=0, block_ids=[0])])


def test_limits_and_layout_describe_the_checkpoint() -> None:
    """What schedulers and peers are told equals what the checkpoint holds."""
    lines: list[str] = []
    engine = load_engine(config_of(tiny_checkpoint(), max_num_seqs=2), lines.append)
    assert engine.limits.vocab_size == VOCAB
    assert engine.limits.max_model_len == MAX_POSITION
    assert engine.limits.eos_token_ids == (EOS,)
    assert engine.limits.num_blocks == 2 * MAX_POSITION // 16
    layout = engine.layout
    assert (layout.num_layers, layout.num_kv_heads, layout.head_dim, layout.block_size) == (3, 2, 8, 16)
    assert (layout.dtype, layout.transports) == ("float32", ("gloo",))
    assert len(layout.model_fingerprint) == 64
    assert engine.stats()["kv_bytes"] == engine.limits.num_blocks * 16 * layout.token_elements * 4
    assert any("loading llama" in line for line in lines)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_explicit_dtype_converts(dtype: str) -> None:
    """Weights and KV are in the dtype asked for, whatever the checkpoint's."""
    engine = load_engine(config_of(tiny_checkpoint(dtype="bfloat16"), dtype=dtype, num_blocks=144))
    assert engine.layout.dtype == dtype
    assert engine.kv.tensor.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("own", "is_fast", "wanted"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, False, torch.float32),
        (torch.float32, False, torch.float32),
        (None, False, torch.float32),
    ],
)
def test_auto_takes_the_checkpoints_own_dtype_where_the_cpu_is_fast_in_it(
    monkeypatch: pytest.MonkeyPatch, own: torch.dtype | None, is_fast: bool, wanted: torch.dtype
) -> None:
    """Auto keeps bfloat16 where oneDNN computes in it, and widens to float32 elsewhere."""
    monkeypatch.setattr("services.engine.load.can_pack_linears", lambda device, dtype: is_fast)
    assert choose_dtype("auto", LlamaConfig(dtype=own), torch.device("cpu")) == wanted


def test_auto_keeps_half_precision_on_cuda_and_widens_it_on_cpu() -> None:
    """Because float16 is slow on every CPU."""
    config = LlamaConfig(dtype=torch.float16)
    assert choose_dtype("auto", config, torch.device("cuda")) == torch.float16
    assert choose_dtype("auto", config, torch.device("cpu")) == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_missing_device_is_refused(device: str) -> None:
    """The error names the device and how many there are."""
    with pytest.raises(ConfigError, match=f"device is {device}, but torch sees 0 CUDA devices"):
        choose_device(device)


def test_a_longer_context_than_the_checkpoints_is_refused() -> None:
    """The error names the limit."""
    with pytest.raises(ConfigError, match=f"the most is {MAX_POSITION}"):
        load_engine(config_of(tiny_checkpoint(), max_model_len=MAX_POSITION + 1))


def test_length_dependent_rotary_positions_stay_within_the_original_length() -> None:
    """Beyond it a batch mate's length would change a request's positions, so the context ends there."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 512}
    path = _with_rope(rope)
    assert load_engine(config_of(path)).limits.max_model_len == 512
    with pytest.raises(ConfigError, match="depend on the other requests"):
        load_engine(config_of(path, max_model_len=513))


def _with_rope(rope: dict[str, object]) -> Path:
    path = tiny_checkpoint().parent / "rope"
    shutil.copytree(tiny_checkpoint(), path, dirs_exist_ok=True)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "wanted"), [(LlamaRMSNorm, RmsNorm), (Gemma2RMSNorm, OffsetRmsNorm)])
def test_norms_are_swapped_for_what_computes_the_same(
    family: type[nn.Module], wanted: type[nn.Module], dtype: torch.dtype
) -> None:
    """Both kinds of RMS norm are told apart by what they compute."""
    torch.manual_seed(0)
    norm = family(40, eps=1e-5).to(dtype)
    norm.weight.data += 0.3 * torch.randn(40)
    fast = fast_norm(norm)
    assert isinstance(fast, wanted)
    hidden = (torch.randn(1, 7, 40) * 5).to(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    with torch.inference_mode():
        torch.testing.assert_close(fast(hidden), norm(hidden), atol=tolerance, rtol=tolerance)


def test_unknown_norms_stay_as_they_are() -> None:
    """Something that is called RMSNorm and computes something else is left alone; so is LayerNorm."""

    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden * self.weight / hidden.abs().mean(-1, keepdim=True)

    assert fast_norm(OddRMSNorm()) is None
    assert fast_norm(nn.LayerNorm(8)) is None
    assert fast_norm(nn.Linear(8, 8)) is None
