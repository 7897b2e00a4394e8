"""Which modules of a model are fused, and which are left alone because they compute something else."""

import pytest
import torch
from torch import nn

from services.engine.attention.hook import StepSlot
from services.engine.attention.select import make_backend
from services.engine.batch import BatchItem, SampleSpec
from services.engine.config import EngineConfig
from services.engine.forward import DirectForward, WholeForward, choose_forward
from services.engine.load import load_model
from services.engine.modules import PackedLinear
from services.engine.native.fusing import EchoStep, fuse_modules
from services.engine.native.kernels import Kernels
from services.engine.native.layer_stack import LayerStack
from services.engine.native.modules import FusedAttention, FusedMlp
from services.engine.packing import pack_step
from services.engine.runner import Runner
from tests.harness.checkpoints import tiny_checkpoint
from tests.harness.engine_driver import GREEDY
from tests.harness.native import kernels_or_none

ONE_SAMPLE = (SampleSpec(sampling=GREEDY, choice=0, index=0),)


@pytest.fixture
def kernels() -> Kernels:
    """The kernels of this machine."""
    found = kernels_or_none()
    if found is None:
        pytest.skip("no C++ compiler is installed")
    return found


@pytest.mark.parametrize(
    ("architecture", "attention", "mlp"),
    [
        ("llama", True, True),
        ("mistral", True, True),
        ("qwen2", True, True),
        ("qwen3", False, True),
        ("gemma2", True, False),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_families(kernels: Kernels, architecture: str, attention: bool, mlp: bool, dtype: str) -> None:
    """Norms of heads and other activations are seen: such modules stay what they are."""
    config = EngineConfig(checkpoint=tiny_checkpoint(architecture), dtype=dtype, device="cpu")
    kinds = [type(module) for module in load_model(config, lambda line: None).model.modules()]
    assert (FusedAttention in kinds, FusedMlp in kinds) == (attention, mlp)


def test_without_kernels_nothing_is_fused() -> None:
    """Switched off, the kernels are nowhere in the model."""
    config = EngineConfig(checkpoint=tiny_checkpoint("llama"), dtype="bfloat16", device="cpu", native_kernels=False)
    loaded = load_model(config, lambda line: None)
    assert loaded.kernels is None
    assert not any("native" in type(module).__module__ for module in loaded.model.modules())
    assert any(isinstance(module, PackedLinear) for module in loaded.model.modules())


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_layers_run_in_one_call(
    kernels: Kernels, architecture: str, quantization: str, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call gives the same bits as layer by layer for any mix of lengths; prompts too where kernels take them."""
    if not kernels.can_multiply:
        pytest.skip("this processor has no AMX")
    checkpoint = tiny_checkpoint(architecture, hidden_size=192, intermediate_size=128, head_dim=head_dim)
    config = EngineConfig(checkpoint=checkpoint, dtype="bfloat16", device="cpu", quantization=quantization)
    loaded = load_model(config, lambda line: None)
    shape, shares = loaded.shape, [(0, 1), (39, 1), (16, 1), (89, 1)]
    if head_dim == 64:
        shares += [(0, 70), (30, 21)]
    kv = torch.randn(shape.num_layers, 2, shape.num_kv_heads, 36, 16, shape.head_dim).bfloat16()
    items = [
        BatchItem(token_ids=range(row, row + n), start=start, block_ids=range(6 * row, 6 * row + 6), samples=ONE_SAMPLE)
        for row, (start, n) in enumerate(shares)
    ]
    packed = pack_step(items, 16, torch.device("cpu"))
    calls: list[int] = []
    real = Kernels.run_layers
    monkeypatch.setattr(Kernels, "run_layers", lambda *given: (calls.append(1), real(*given)))
    backends = [make_backend("native", kv.clone(), loaded.kernels) for _ in range(2)]
    with torch.inference_mode():
        together = Runner(loaded.forward, loaded.slot, backends[0]).forward(packed)
        assert calls == [1]
        monkeypatch.setattr(LayerStack, "forward", LayerStack.one_by_one)
        apart = Runner(loaded.forward, loaded.slot, backends[1]).forward(packed)
    assert calls == [1]
    assert torch.equal(together, apart)
    assert torch.equal(backends[0].kv, backends[1].kv)


class _Mlp(nn.Module):
    """Looks like a gated MLP and clips what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., 8] to the same."""
        gated = nn.functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        return self.down_proj(gated.clamp(-50, 50))


def test_what_differs_for_large_numbers_only_is_left_alone(kernels: Kernels) -> None:
    """Clipping does nothing to small numbers; large ones give it away."""
    model = nn.Sequential(_Mlp())
    assert fuse_modules(model, StepSlot(), [], kernels) == 0


@pytest.mark.parametrize(
    ("architecture", "is_direct"),
    [("llama", True), ("mistral", True), ("qwen2", True), ("qwen3", False), ("gemma2", False)],
)
def test_what_is_around_the_layers_is_left_out_where_it_does_nothing(
    kernels: Kernels, architecture: str, is_direct: bool
) -> None:
    """Where all layers are one module a pass calls the parts alone, and gives the bits of the model's own forward."""
    if not kernels.can_multiply:
        pytest.skip("this processor has no AMX")
    checkpoint = tiny_checkpoint(architecture, hidden_size=192, intermediate_size=128, head_dim=64)
    loaded = load_model(EngineConfig(checkpoint=checkpoint, dtype="bfloat16", device="cpu"), lambda line: None)
    assert isinstance(loaded.forward, DirectForward) == is_direct
    ids, positions, rows = torch.arange(3, 12)[None], torch.arange(9)[None], torch.tensor([0, 8])
    with torch.inference_mode(), loaded.slot.running(EchoStep()):
        assert torch.equal(loaded.forward(ids, positions, rows), WholeForward(loaded.model)(ids, positions, rows))


@pytest.mark.parametrize("part", ["scaled", "capped"])
def test_what_is_around_the_layers_is_kept_where_it_computes(
    kernels: Kernels, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that scales embeddings or bends logits between the parts runs through its own forward."""
    if not kernels.can_multiply:
        pytest.skip("this processor has no AMX")
    checkpoint = tiny_checkpoint("llama", hidden_size=192, intermediate_size=128, head_dim=64)
    loaded = load_model(EngineConfig(checkpoint=checkpoint, dtype="bfloat16", device="cpu"), lambda line: None)
    inner = type(loaded.model.model) if part == "scaled" else type(loaded.model)
    real = inner.forward

    def changed(self, *given, **named):
        if part == "scaled":
            return real(self, inputs_embeds=2 * self.embed_tokens(named.pop("input_ids")), **named)
        output = real(self, *given, **named)
        output.logits = output.logits.tanh()
        return output

    monkeypatch.setattr(inner, "forward", changed)
    assert isinstance(choose_forward(loaded.model, loaded.slot), WholeForward)
