"""Whether a prefill worker's KV can be handed to a decode worker, and if not, why.

Pure: knows layouts only, neither workers nor how KV travels. Differences of dtype and block size are no reason to
refuse, because the sink converts both; the degree of tensor parallelism is none, because KV travels with all heads.
"""

from services.common.types import KvLayout

_MUST_BE_EQUAL = ("protocol_version", "model_fingerprint", "num_layers", "num_kv_heads", "head_dim")


def incompatibility(prefill: KvLayout, decode: KvLayout) -> str | None:
    """Why KV of `prefill` does not fit `decode`: names the field and both values; None where it fits."""
    for name in _MUST_BE_EQUAL:
        ours, theirs = getattr(prefill, name), getattr(decode, name)
        if ours != theirs:
            return f"{name} differs: {ours} at prefill, {theirs} at decode"
    if common_transport(prefill, decode) is None:
        offered = f"{_listed(prefill.transports)} at prefill, {_listed(decode.transports)} at decode"
        return f"no common transport: {offered}"
    return None


def common_transport(prefill: KvLayout, decode: KvLayout) -> str | None:
    """The transport for a pair: the decode side's best one that the prefill side has too; None where there is none."""
    return next((name for name in decode.transports if name in prefill.transports), None)


def _listed(transports: tuple[str, ...]) -> str:
    return ", ".join(transports) or "none"
