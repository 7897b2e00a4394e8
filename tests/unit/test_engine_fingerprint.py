"""When two checkpoints count as the same."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from services.engine.fingerprint import model_fingerprint
from tests.harness.checkpoints import tiny_checkpoint


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a tiny checkpoint in another directory."""
    return Path(shutil.copytree(tiny_checkpoint(), tmp_path / "elsewhere"))


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}, indent=7))


def test_the_same_content_elsewhere_is_the_same(copy: Path) -> None:
    """Directory, spacing, file names and notes about how it was saved do not count."""
    edit_config(copy, transformers_version="0.0", _name_or_path="x", use_cache=False)
    (copy / "model.safetensors").rename(copy / "other-name.safetensors")
    assert model_fingerprint(copy) == model_fingerprint(tiny_checkpoint())


@pytest.mark.parametrize("change", [{"rms_norm_eps": 1e-4}, {"num_key_value_heads": 3}])
def test_another_architecture_is_another_model(copy: Path, change: dict[str, object]) -> None:
    """Whatever changes the numbers that come out changes the fingerprint."""
    edit_config(copy, **change)
    assert model_fingerprint(copy) != model_fingerprint(tiny_checkpoint())


def test_other_weights_are_another_model(copy: Path) -> None:
    """The same shapes with slightly other weights, as after fine-tuning."""
    weights = load_file(copy / "model.safetensors")
    save_file({name: weight * 1.001 for name, weight in weights.items()}, copy / "model.safetensors")
    assert model_fingerprint(copy) != model_fingerprint(tiny_checkpoint())


def test_a_truncated_file_is_another_model(copy: Path) -> None:
    """A file that lost its end has another size."""
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert model_fingerprint(copy) != model_fingerprint(tiny_checkpoint())
