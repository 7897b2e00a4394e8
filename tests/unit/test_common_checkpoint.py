"""Finding checkpoints and reading their JSON."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from services.common import checkpoint
from services.common.checkpoint import ModelFacts, read_model_facts, resolve_checkpoint
from services.common.config import ConfigError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "eos_token_id": 2,
}


def written(path: Path, config: object = None, generation: object = None) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_a_directory_is_taken_as_it_is(tmp_path: Path):
    """Without any network."""
    assert resolve_checkpoint(str(written(tmp_path))) == tmp_path


@pytest.mark.parametrize("model", ["", "demo"])
def test_the_demo_checkpoint_is_found_in_its_places(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first place that holds one; none is an error that says where it was looked for."""
    places = (tmp_path / "absent", written(tmp_path))
    monkeypatch.setattr(checkpoint, "_DEMO_PLACES", places)
    assert resolve_checkpoint(model) == tmp_path
    monkeypatch.setattr(checkpoint, "_DEMO_PLACES", places[:1])
    with pytest.raises(ConfigError, match="absent"):
        resolve_checkpoint(model)


@pytest.mark.parametrize("model", ["/nowhere/model", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_path_that_does_not_exist_never_goes_to_the_hub(model: str, monkeypatch: pytest.MonkeyPatch):
    """A misspelled path must not be looked up on the network."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match="no such directory"):
        resolve_checkpoint(model)


def test_a_directory_without_a_checkpoint_says_what_is_missing(tmp_path: Path):
    """config.json makes a checkpoint."""
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_checkpoint(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch):
    """With what to check."""

    def unreachable(model: str, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ConfigError, match="HF_HOME"):
        resolve_checkpoint("some/model")


def test_a_hub_id_is_downloaded_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights and JSON only: nothing of a repository is ever executed."""
    asked: list[object] = []

    def download(model: str, *, allow_patterns: list[str]) -> str:
        asked.extend([model, *allow_patterns])
        return str(written(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_checkpoint("some/model") == tmp_path
    assert asked[0] == "some/model"
    assert not [pattern for pattern in asked[1:] if str(pattern).endswith((".py", ".bin", ".pt", "*"))]


def test_facts_come_from_the_configuration(tmp_path: Path):
    """One end-of-sequence token becomes a tuple."""
    expected = ModelFacts(vocab_size=512, max_position=1024, eos_token_ids=(2,), architecture="LlamaForCausalLM")
    assert read_model_facts(written(tmp_path)) == expected


def test_the_generation_configuration_knows_the_ends_better(tmp_path: Path):
    """Chat models often have several, and only there."""
    assert read_model_facts(written(tmp_path, generation={"eos_token_id": [2, 7]})).eos_token_ids == (2, 7)
    assert read_model_facts(written(tmp_path, generation={"eos_token_id": None})).eos_token_ids == (2,)


def test_nested_text_configurations_are_read(tmp_path: Path):
    """Multimodal checkpoints keep the language model's part inside."""
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"vocab_size": 9, "n_positions": 5}}
    facts = read_model_facts(written(tmp_path, nested))
    assert (facts.vocab_size, facts.max_position, facts.eos_token_ids) == (9, 5, ())


@pytest.mark.parametrize("config", [{}, {"vocab_size": 5}, {"vocab_size": "5", "max_position_embeddings": 5}, []])
def test_a_configuration_that_says_too_little_is_refused(tmp_path: Path, config: object):
    """With the file and the key."""
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_model_facts(written(tmp_path, config))
