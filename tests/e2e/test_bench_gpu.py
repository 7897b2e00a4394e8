"""What `make gpu` measures, tried on CPU with a tiny model: every benchmark runs and says what it ran on."""

import json
import pathlib

import pytest
import torch

from scripts import bench_gpu

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_every_tier_is_measured(tmp_path: pathlib.Path) -> None:
    """Three reports; those of the engine name the device, the attention backend and whether graphs were used."""
    places = ("--results", str(tmp_path / "results"), "--checkpoints", str(tmp_path / "checkpoints"))
    assert bench_gpu.main(["--device", "cpu", "--shape", "tiny", "--quick", *places]) == 0
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert set(found) == {"gpu-prefill", "gpu-decode", "gpu-transfer"}
    for name in ("gpu-prefill", "gpu-decode"):
        engine = found[name]["engine"]
        assert (engine["device"], engine["dtype"], engine["cuda_graphs"]) == ("cpu", "bfloat16", False)
        assert engine["attention"] in ("native", "gather")
    assert (found["gpu-transfer"]["device"], found["gpu-transfer"]["transport"]) == ("cpu", "gloo")
    assert all(report["rows"] for report in found.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_made(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so at once, before 16 GB of weights are drawn."""
    assert bench_gpu.main(["--checkpoints", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
