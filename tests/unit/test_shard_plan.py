"""Which weights are divided between ranks, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.config import ConfigError
from services.engine.tensor_parallel.plan import Cut, Shard, plan_shards

STYLES = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
SIZES = {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 96}


@given(st.integers(0, 500), st.integers(1, 16))
def test_shares_cover_everything_once_and_evenly(size: int, degree: int) -> None:
    """Each row belongs to one rank, in order, and no rank has two rows more than another."""
    shares = [Shard(rank, degree).share(size) for rank in range(degree)]
    rows = [row for share in shares for row in range(share.start, share.stop)]
    assert rows == list(range(size))
    counts = [share.stop - share.start for share in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("parameter", "cut"),
    [
        ("model.layers.0.self_attn.q_proj.weight", Cut.OUTPUTS),
        ("model.layers.11.self_attn.q_proj.bias", Cut.OUTPUTS),
        ("layers.3.mlp.down_proj.weight", Cut.INPUTS),
        ("model.language_model.layers.3.self_attn.o_proj.weight", Cut.INPUTS),
        ("model.layers.0.self_attn.q_norm.weight", None),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
        ("model.layers.0.self_attn.my_q_proj.weight", None),
        ("model.layers.0.other.self_attn.q_proj.weight", None),
    ],
)
def test_a_parameter_is_cut_as_the_family_says(parameter: str, cut: Cut | None) -> None:
    """Whatever stands before the layers in its name; what the plan does not name, every rank has whole."""
    assert plan_shards("llama", STYLES, SIZES, 2).cut_of(parameter) is cut


@pytest.mark.parametrize(
    ("changes", "degree", "reason"),
    [
        ({"styles": None}, 2, "no plan for dividing odd"),
        ({"styles": {}}, 2, "no plan for dividing odd"),
        ({"styles": {**STYLES, "layers.*.qkv": "colwise_gather_output"}}, 2, "divided as colwise_gather_output"),
        ({}, 4, "num_attention_heads 6 cannot be divided by 4"),
        ({}, 3, "num_key_value_heads 2 cannot be divided by 3"),
        ({"sizes": {**SIZES, "intermediate_size": 97}}, 2, "intermediate_size 97 cannot be divided by 2"),
        ({"sizes": {**SIZES, "num_key_value_heads": None}}, 2, "has no num_key_value_heads"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(changes: dict[str, Any], degree: int, reason: str) -> None:
    """Before any weight is read."""
    given_ = {"styles": STYLES, "sizes": SIZES, **changes}
    with pytest.raises(ConfigError, match=reason):
        plan_shards("odd", given_["styles"], given_["sizes"], degree)
