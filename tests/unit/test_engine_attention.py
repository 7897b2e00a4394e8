"""The attention backends of the CPU against the formula, and which backend is chosen."""

from collections.abc import Callable

import pytest
import torch

from services.common.config import ConfigError
from services.engine.attention.gather import SLICE_ROWS
from services.engine.attention.interface import AttentionBackend, LayerOptions
from services.engine.attention.select import BackendChoice, choose_backend, make_backend
from tests.harness.native import kernels_or_none
from tests.harness.paged_case import PagedCase

MIXED = [(0, 1), (3, 1), (7, 1), (8, 1), (40, 1), (300, 1), (0, 5), (0, 130), (13, 70), (64, 64), (5, 2)]
PLAIN = LayerOptions(layer_idx=1, scale=0.3)

MakeBackend = Callable[[torch.Tensor], AttentionBackend]


@pytest.fixture(params=["gather", "native"])
def backend(request: pytest.FixtureRequest) -> MakeBackend:
    """Each backend that runs on CPU."""
    kernels = kernels_or_none()
    if request.param == "native" and kernels is None:
        pytest.skip("no C++ compiler is installed")
    return lambda kv: make_backend(request.param, kv, kernels)


@pytest.mark.parametrize("window", [None, 1, 7, 8, 64, 100, 1000])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_mixed_batch_equals_the_formula(window: int | None, softcap: float | None, backend: MakeBackend) -> None:
    """One-token items of all lengths and prompts with and without history come out as the formula says."""
    case = PagedCase.random(MIXED)
    options = LayerOptions(layer_idx=1, scale=0.3, sliding_window=window, softcap=softcap)
    torch.testing.assert_close(
        case.run(backend(case.kv), options).double(), case.expected(options), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("heads", [(4, 4), (8, 1), (3, 3), (12, 4)])
@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_head_groups_and_block_sizes(heads: tuple[int, int], block_size: int, backend: MakeBackend) -> None:
    """Any grouping of query heads and any block size gives the formula's result."""
    case = PagedCase.random(
        [(0, 1), (9, 1), (31, 1), (20, 33)], num_heads=heads[0], num_kv_heads=heads[1], block_size=block_size
    )
    torch.testing.assert_close(case.run(backend(case.kv), PLAIN).double(), case.expected(PLAIN), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [SLICE_ROWS - 1, SLICE_ROWS, SLICE_ROWS + 1, 2 * SLICE_ROWS, 2 * SLICE_ROWS + 1])
def test_slices_of_long_prompts_join_without_seams(rows: int, backend: MakeBackend) -> None:
    """A prompt around a multiple of the slice length loses and doubles no row."""
    case = PagedCase.random([(11, rows)])
    torch.testing.assert_close(case.run(backend(case.kv), PLAIN).double(), case.expected(PLAIN), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("head_dim", "heads", "block_size"), [(8, 6, 8), (64, 6, 8), (64, 6, 16), (128, 40, 32)])
@pytest.mark.parametrize("window", [None, 7, 100])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_bfloat16_is_close_to_the_formula(
    head_dim: int, heads: int, block_size: int, window: int | None, softcap: float | None, backend: MakeBackend
) -> None:
    """bfloat16 differs from the formula by its own rounding only (values are of size 1, its step there is 2^-7)."""
    sizes = [*MIXED, (200, 300)]
    case = PagedCase.random(sizes, num_heads=heads, head_dim=head_dim, block_size=block_size, dtype=torch.bfloat16)
    options = LayerOptions(layer_idx=1, scale=head_dim**-0.5, sliding_window=window, softcap=softcap)
    torch.testing.assert_close(
        case.run(backend(case.kv), options).double(), case.expected(options), atol=0.03, rtol=0.03
    )


def test_new_keys_and_values_are_stored_where_the_block_table_says(backend: MakeBackend) -> None:
    """After a step, KV holds every position of every request, and nothing else was written."""
    case = PagedCase.random(MIXED)
    untouched = case.kv[0].clone()
    case.run(backend(case.kv), PLAIN)
    written = 0
    for item, key, value in zip(case.items, case.keys, case.values, strict=True):
        for position in range(key.shape[1]):
            place = case.kv[1, :, :, item.block_ids[position // 8], position % 8]
            assert torch.equal(place, torch.stack([key[:, position], value[:, position]]))
            written += place.numel()
    assert int((~case.kv[1].isnan()).sum()) == written
    assert torch.equal(case.kv[0].isnan(), untouched.isnan())


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_nan_of_one_request_stays_its_own(
    part: int, dtype: torch.dtype, tolerance: float, backend: MakeBackend
) -> None:
    """A request whose keys or values are NaN gets NaN; its batch mates get what the formula says."""
    case = PagedCase.random([(20, 1), (21, 1), (5, 30)], head_dim=64, block_size=16, dtype=dtype)
    case.kv[1, part, :, case.items[1].block_ids[0]] = float("nan")
    got, wanted = case.run(backend(case.kv), PLAIN), case.expected(PLAIN)
    assert got[1].isnan().all()
    healthy = [0, *range(2, 32)]
    torch.testing.assert_close(got[healthy].double(), wanted[healthy], atol=tolerance, rtol=tolerance)


def test_what_one_request_gets_does_not_depend_on_the_others() -> None:
    """With our own kernels a request alone gets bit for bit what it gets in a batch, also fed in other chunks."""
    kernels = kernels_or_none()
    if kernels is None:
        pytest.skip("no C++ compiler is installed")
    case = PagedCase.random([(300, 1), (500, 1), (100, 200)], head_dim=64, block_size=16, dtype=torch.bfloat16)
    together = case.run(make_backend("native", case.kv, kernels), PLAIN)
    for row in (0, 1):
        assert torch.equal(case.only(row).run(make_backend("native", case.kv, kernels), PLAIN)[0], together[row])
    if kernels.can_multiply:
        later = case.only(2).rest(70).run(make_backend("native", case.kv, kernels), PLAIN)
        assert torch.equal(later, together[2 + 70 :])


def test_plain_torch_is_chosen_on_cpu_without_kernels() -> None:
    """Without a wish, a CPU device gets our own kernels where there are any, else the plain backend with the reason."""
    device, reason = torch.device("cpu"), "native: there are no kernels of our own"
    assert choose_backend("auto", device, torch.float32, [PLAIN], 0) == BackendChoice("gather", (reason,))
    kernels = kernels_or_none()
    if kernels is not None:
        assert choose_backend("auto", device, torch.float32, [PLAIN], 0, kernels) == BackendChoice("native", ())


@pytest.mark.parametrize("wanted", ["flash", "varlen"])
def test_cuda_backends_are_refused_on_cpu_with_the_reason(wanted: str) -> None:
    """A CUDA backend asked for on CPU is refused, naming backend, reason and settings."""
    with pytest.raises(ConfigError, match=f"{wanted}: it needs a CUDA device.*use attention auto"):
        choose_backend(wanted, torch.device("cpu"), torch.bfloat16, [PLAIN], 0)


def test_float32_on_cuda_falls_back_to_plain_torch() -> None:
    """The kernels compute in half precision only; float32 still runs, and asking for a kernel says why not."""
    cuda = torch.device("cuda")
    choice = choose_backend("auto", cuda, torch.float32, [PLAIN], 0)
    assert choice.name == "gather"
    assert [reason.split(":")[0] for reason in choice.passed_over] == ["flash", "varlen"]
    with pytest.raises(ConfigError, match="flash: it computes in bfloat16 or float16 only"):
        choose_backend("flash", cuda, torch.float32, [PLAIN], 0)


def test_softcapping_is_refused_by_the_kernel_without_it() -> None:
    """Torch's own kernel cannot bend scores, and says so rather than leaving it out."""
    bent = LayerOptions(layer_idx=0, scale=1.0, softcap=50.0)
    with pytest.raises(ConfigError, match="varlen: it has no logit softcapping"):
        choose_backend("varlen", torch.device("cuda"), torch.bfloat16, [bent], 0)
