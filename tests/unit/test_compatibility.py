"""Which layouts fit, and what is said where they do not."""

import pytest

from services.kvtransfer.compatibility import common_transport, incompatibility
from tests.harness.fake_kv import LAYOUT, layout_with


def test_equal_layouts_fit() -> None:
    """Two workers of one kind always fit."""
    assert incompatibility(LAYOUT, LAYOUT) is None


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"block_size": 256}])
def test_convertible_differences_fit(changes: dict[str, object]) -> None:
    """Dtype and block size are converted by the sink."""
    assert incompatibility(LAYOUT, layout_with(**changes)) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_fingerprint", "other"), ("num_layers", 3), ("num_kv_heads", 1), ("head_dim", 8), ("protocol_version", 2)],
)
def test_reason_names_the_field_and_both_values(name: str, value: object) -> None:
    """An operator sees which field differs and how, without a debugger."""
    reason = incompatibility(LAYOUT, layout_with(**{name: value}))
    assert reason == f"{name} differs: {getattr(LAYOUT, name)} at prefill, {value} at decode"


@pytest.mark.parametrize(("prefill", "decode"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_any_degrees_of_tensor_parallelism_fit(prefill: int, decode: int) -> None:
    """KV travels with all heads, so that neither side needs to know into how many ranks the other divides them."""
    assert incompatibility(layout_with(tensor_parallel=prefill), layout_with(tensor_parallel=decode)) is None


def test_no_common_transport_is_refused_with_both_lists() -> None:
    """The reason lists what each side offers."""
    reason = incompatibility(layout_with(transports=("nccl",)), layout_with(transports=()))
    assert reason == "no common transport: nccl at prefill, none at decode"


def test_decode_side_chooses_the_transport() -> None:
    """The decode side's best one that both have is taken."""
    prefill, decode = layout_with(transports=("gloo", "nccl")), layout_with(transports=("nccl", "gloo"))
    assert common_transport(prefill, decode) == "nccl"
