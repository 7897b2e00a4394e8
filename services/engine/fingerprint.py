"""Names a checkpoint by its content, equal on every host, without reading all of it.

Two workers may exchange KV only if their fingerprints are equal. Knows nothing of torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

SAMPLES = 64
SAMPLE_BYTES = 4096
# Says how, where or with what the checkpoint was saved, not what it computes.
_IRRELEVANT = frozenset(
    "_name_or_path architectures dtype torch_dtype transformers_version use_cache "
    "bos_token_id eos_token_id pad_token_id".split()
)


def model_fingerprint(checkpoint: Path, quantization: str = "none") -> str:
    """Hex SHA-256 over the configuration, and over each weight file's header, size and evenly spaced samples.

    File names do not count; the order of the files' contents does not either. Weights that are quantized as they are
    loaded are those of another model.
    """
    digest = hashlib.sha256(_canonical_config(checkpoint / "config.json"))
    for part in sorted(_file_digest(path) for path in checkpoint.glob("*.safetensors")):
        digest.update(part)
    if quantization != "none":
        digest.update(quantization.encode())
    return digest.hexdigest()


def _canonical_config(path: Path) -> bytes:
    return json.dumps(_relevant(json.loads(path.read_bytes())), sort_keys=True, separators=(",", ":")).encode()


def _relevant(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _relevant(inner) for key, inner in value.items() if key not in _IRRELEVANT}
    return [_relevant(inner) for inner in value] if isinstance(value, list) else value


def _file_digest(path: Path) -> bytes:
    """Header length is the first 8 bytes of a safetensors file, little-endian; the header is JSON, then come data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = min(int.from_bytes(prefix, "little"), size)
        digest = hashlib.sha256(size.to_bytes(8, "little") + prefix + file.read(header_bytes))
        data_begin = 8 + header_bytes
        last = max(size - SAMPLE_BYTES, data_begin)
        for sample in range(SAMPLES):
            file.seek(data_begin + (last - data_begin) * sample // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()
