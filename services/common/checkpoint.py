"""Finds checkpoints and reads what their JSON files say; loads no weights and needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

import services
from services.common.config import ConfigError

DEMO = "demo"

_ROOT = Path(services.__path__[0])
# In an installed package, and in the source tree.
_DEMO_PLACES = (_ROOT / "demo_checkpoint", _ROOT.parent / "models" / "demo")
_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a frontend must know of a model; `max_position` and the vocabulary are counts of tokens."""

    vocab_size: int
    max_position: int
    eos_token_ids: tuple[int, ...]
    architecture: str


def resolve_checkpoint(model: str) -> Path:
    """Finds the directory of a checkpoint: "" and "demo" are the shipped one, else a directory, else a hub id.

    Raises:
        ConfigError: there is no such checkpoint, or the hub cannot be reached and has not been before.
    """
    if model in ("", DEMO):
        return _demo_checkpoint()
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ConfigError(f"model {model}: there is no such directory")
    try:
        return _checked(Path(huggingface_hub.snapshot_download(model, allow_patterns=_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        message = f"model {model}: is no directory, and the Hugging Face hub does not give it"
        raise ConfigError(f"{message} ({type(error).__name__}); check the name, the network or HF_HOME") from error


def served_name(model: str, chosen: str) -> str:
    """Name under which a checkpoint is served: the chosen one, else the last part of its path or id."""
    return chosen or model.rstrip("/").rpartition("/")[2] or DEMO


def read_model_facts(path: Path) -> ModelFacts:
    """Reads config.json and generation_config.json.

    Raises:
        ConfigError: they are unreadable or do not say how large the vocabulary is or how long a context may get.
    """
    config = _read_json(path / "config.json")
    # Multimodal checkpoints nest the language model's part.
    text = config.get("text_config") or config
    generation = _read_json(path / "generation_config.json") if (path / "generation_config.json").exists() else {}
    eos = next((v for v in (generation.get("eos_token_id"), text.get("eos_token_id")) if v is not None), ())
    architectures = config.get("architectures") or ["unknown"]
    return ModelFacts(
        vocab_size=_number(path, text, "vocab_size"),
        max_position=_number(path, text, "max_position_embeddings", "n_positions", "max_sequence_length"),
        eos_token_ids=(eos,) if isinstance(eos, int) else tuple(eos),
        architecture=str(architectures[0]),
    )


def _demo_checkpoint() -> Path:
    for place in _DEMO_PLACES:
        if (place / "config.json").is_file():
            return place
    places = " or ".join(str(place) for place in _DEMO_PLACES)
    raise ConfigError(f"the demo checkpoint is not in {places}; install the package, or name a model")


def _checked(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ConfigError(f"model {path}: holds no config.json, so it is no Hugging Face checkpoint")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"model file {path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"model file {path}: is no JSON object")
    return content


def _number(path: Path, config: dict[str, Any], *keys: str) -> int:
    for key in keys:
        if isinstance(config.get(key), int):
            return config[key]
    raise ConfigError(f"model {path}: config.json has none of {', '.join(keys)}")
