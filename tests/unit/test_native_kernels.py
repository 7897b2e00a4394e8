"""Our own C++ kernels against the formulas, and what happens where they cannot be built."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from services.engine.native import library
from services.engine.native.kernels import Kernels
from services.engine.native.library import KernelsUnavailable, cache_directory, load_library
from services.engine.native.tiles import TileStore
from services.engine.quantized import quantize_rows
from tests.harness.native import kernels_or_none

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def kernels() -> Kernels:
    """The kernels of this machine."""
    found = kernels_or_none()
    if found is None:
        pytest.skip("no C++ compiler is installed")
    return found


def assert_close(got: torch.Tensor, wanted: torch.Tensor, *, equal_nan: bool = False) -> None:
    """Equal up to the rounding of the dtype that was computed in."""
    tolerance = 2e-6 if got.dtype == torch.float32 else 8e-3
    torch.testing.assert_close(got.double(), wanted.double(), atol=tolerance, rtol=tolerance, equal_nan=equal_nan)


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33, 65, 100, 511, 2100])
@pytest.mark.parametrize("shape", [(16, 32), (48, 64), (50, 96), (770, 768), (200, 1600)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(kernels: Kernels, rows: int, shape: tuple[int, int], has_bias: bool) -> None:
    """Any number of rows and outputs comes out as the formula says, those that fill no tile too."""
    if not kernels.can_multiply:
        pytest.skip("this processor has no AMX")
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(1, rows, shape[1], generator=generator).bfloat16()
    weight = torch.randn(shape, generator=generator).div_(shape[1] ** 0.5).bfloat16()
    bias = torch.randn(shape[0], generator=generator).bfloat16() if has_bias else None
    wanted = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert_close(kernels.linear(x, TileStore().pack(weight), shape[0], bias), wanted)


@pytest.mark.parametrize(("rows", "size"), [(60, 96), (330, 1600)])
def test_linear_gives_a_row_the_same_bits_in_any_company(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, rows: int, size: int
) -> None:
    """A row's result does not depend on the number of rows or threads, bit for bit."""
    if not kernels.can_multiply:
        pytest.skip("this processor has no AMX")
    x, tiles = torch.randn(rows, size).bfloat16(), TileStore().pack(torch.randn(80, size).bfloat16())
    together = kernels.linear(x, tiles, 80, None)
    parts = [kernels.linear(part, tiles, 80, None) for count in (1, 17, 33, 70, 300) for part in x.split(count)]
    assert torch.equal(torch.cat(parts), together.repeat(5, 1))
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(kernels.linear(x, tiles, 80, None), together)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 300, 200)], ids=str)
def test_rms_norm(kernels: Kernels, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Every row is divided by its own root mean square; rows enough for several threads too."""
    x, scale = torch.randn(shape).mul_(3).to(dtype), torch.rand(shape[-1])
    assert_close(kernels.rms_norm(x, scale, 1e-5), functional.rms_norm(x.double(), shape[-1:], scale.double(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_gate(kernels: Kernels, dtype: torch.dtype) -> None:
    """Gates from far below zero to far above come out as the formula says."""
    gate = torch.linspace(-100, 100, 4000).expand(3, -1).to(dtype)
    up = torch.randn(3, 4000).to(dtype)
    assert_close(kernels.silu_gate(in_turns(gate, up)), functional.silu(gate.double()) * up.double())


def in_turns(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Sixteen of the one and sixteen of the other."""
    return torch.stack([half.unflatten(-1, (-1, 16)) for half in (gate, up)], -2).flatten(-3)


@pytest.mark.parametrize("rows", [1, 17, 300])
@pytest.mark.parametrize("is_int8", [False, True])
def test_gated_linear(kernels: Kernels, rows: int, is_int8: bool) -> None:
    """What is gated as it is computed is what the product gives when it is gated afterwards."""
    if not kernels.can_multiply:
        pytest.skip("this processor has no AMX")
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 192, generator=generator).mul_(4).bfloat16()
    weight, bias = torch.randn(96, 192, generator=generator).bfloat16(), torch.randn(96, generator=generator).bfloat16()
    if is_int8:
        numbers, scale = quantize_rows(weight)
        tiles, scale = TileStore().pack(numbers), scale[:, 0].contiguous()
        gated, whole = (kernels.quantized_linear(x, tiles, scale, bias, gated=gated) for gated in (True, False))
    else:
        tiles = TileStore().pack(weight)
        gated, whole = (kernels.linear(x, tiles, 96, bias, gated=gated) for gated in (True, False))
    assert_close(gated, kernels.silu_gate(whole))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 511, 512, 1500])
def test_largest(kernels: Kernels, dtype: torch.dtype, width: int) -> None:
    """As torch finds it, the first of several equal ones, of any sign; what is no number anywhere in a row is seen."""
    rows = torch.randn(12, width).mul_(3).round().to(dtype)
    rows[1], rows[2], rows[3] = -rows[1].abs() - 1, float("-inf"), -0.0
    rows[3, width // 2], rows[4, width // 2], rows[5, width // 3] = 0.0, float("nan"), -float("nan")
    rows[6, width - 1], rows[7] = float("inf"), -rows[7].abs()
    values, places = kernels.largest(rows[1:])
    wanted, first = rows[1:].max(-1)
    assert_close(values, wanted.float(), equal_nan=True)
    healthy = ~wanted.isnan()
    assert torch.equal(places[healthy], first[healthy])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("turned", [16, 8])
def test_rotate(kernels: Kernels, dtype: torch.dtype, turned: int) -> None:
    """The first heads turn by their row's angles, where they lie; the last head and a head's rest stay."""
    heads = torch.randn(5, 3, 16).to(dtype)
    angles = torch.rand(5, turned).mul_(6)
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    wanted = heads.double()
    part = wanted[:, :2, :turned].clone()
    crossed = torch.cat([-part[..., turned // 2 :], part[..., : turned // 2]], -1)
    wanted[:, :2, :turned] = part * cosines[:, None].double() + crossed * sines[:, None].double()
    kernels.rotate(heads[:, :2], cosines, sines)
    assert_close(heads, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_store(kernels: Kernels, dtype: torch.dtype) -> None:
    """Keys and values that lie apart go to their slots, and nothing else is written."""
    kv = torch.zeros(2, 3, 4, 8, 16, dtype=dtype)
    lying = torch.randn(5, 9, 16).to(dtype).transpose(0, 1)
    key, value, slots = lying[3:6], lying[6:], torch.tensor([31, 0, 9, 8, 17])
    kernels.store(kv, key, value, slots)
    wanted = torch.zeros_like(kv).view(2, 3, 32, 16)
    wanted[0, :, slots], wanted[1, :, slots] = key, value
    assert torch.equal(kv.view(2, 3, 32, 16), wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stay_visible(kernels: Kernels, bad: float) -> None:
    """NaN and infinity are not lost in a kernel that sums in vectors; other rows do not see them."""
    x = torch.randn(2, 64)
    x[0, 7] = bad
    for out in (kernels.rms_norm(x, torch.ones(64), 1e-5), kernels.silu_gate(x)):
        assert not out[0].isfinite().all()
        assert out[1].isfinite().all()


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler is an error that says what to install."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelsUnavailable, match=r"install g\+\+"):
        load_library()


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the compiler says is told, and the cache holds no half-built kernels."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such flag >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(KernelsUnavailable, match="no such flag"):
        load_library()
    assert list((tmp_path / "cache" / "baton").iterdir()) == []


def test_a_slow_compiler_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler that does not end in time is ended."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nexec sleep 600\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "BUILD_TIMEOUT_S", 0.05)
    with pytest.raises(KernelsUnavailable, match="timed out"):
        load_library()


def test_a_cache_that_others_can_write_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code is loaded only from where no other user could have put it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_directory().chmod(0o777)
    with pytest.raises(KernelsUnavailable, match="chmod 700"):
        load_library()
