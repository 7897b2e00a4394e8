"""Wire messages and plain types say the same."""

import struct

import pytest
from baton.v1 import types_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from services.common import convert
from services.common.errors import InvalidRequest
from services.common.sampling import SamplingParams
from services.common.types import (
    ChoiceTokens,
    FinishReason,
    KvLayout,
    Load,
    SizedTime,
    StageTimes,
    Tier,
    Token,
    Usage,
    WorkerInfo,
)

ids = st.integers(0, 2**32 - 1)
counts = st.integers(0, 2**31 - 1)
times = st.integers(0, 2**63 - 1)
floats = st.floats(-100, 100, width=32)
texts = st.text(max_size=8)

samplings = st.builds(
    SamplingParams,
    temperature=floats,
    top_k=counts,
    top_p=floats,
    min_p=floats,
    repetition_penalty=floats,
    presence_penalty=floats,
    frequency_penalty=floats,
    seed=st.none() | st.integers(0, 2**64 - 1),
    max_tokens=st.none() | counts,
    min_tokens=counts,
    stop=st.lists(texts, max_size=3).map(tuple),
    stop_token_ids=st.lists(ids, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logit_bias=st.dictionaries(ids, floats, max_size=3),
    n=counts,
    logprobs=st.none() | counts,
)
tokens = st.builds(
    Token,
    id=ids,
    index=counts,
    logprob=st.none() | floats,
    top_logprobs=st.lists(st.tuples(ids, floats), max_size=2).map(tuple),
)
choices = st.builds(
    ChoiceTokens,
    choice=counts,
    tokens=st.lists(tokens, max_size=3).map(tuple),
    finish=st.none() | st.sampled_from(FinishReason),
)
layouts = st.builds(
    KvLayout,
    model_fingerprint=texts,
    dtype=texts,
    num_layers=counts,
    num_kv_heads=counts,
    head_dim=counts,
    block_size=counts,
    tensor_parallel=counts,
    protocol_version=counts,
    transports=st.lists(texts, max_size=3).map(tuple),
)
workers = st.builds(
    WorkerInfo,
    worker_id=st.text(min_size=1, max_size=8),
    incarnation=st.text(min_size=1, max_size=8),
    tier=st.sampled_from(Tier),
    address=st.text(min_size=1, max_size=8),
    model=texts,
    layout=layouts,
    max_model_len=counts,
    version=texts,
    total_blocks=counts,
    max_num_seqs=counts,
)
sized_times = st.builds(SizedTime, tokens=counts, time_ns=times)
loads = st.builds(
    Load,
    waiting_requests=counts,
    outstanding_tokens=counts,
    running_requests=counts,
    free_blocks=counts,
    total_blocks=counts,
    handoffs=counts,
    channels=counts,
    draining=st.booleans(),
    counters=st.dictionaries(texts, times, max_size=3),
    proven=st.none() | st.lists(texts, max_size=2).map(tuple),
    step_times=st.lists(sized_times, max_size=3).map(tuple),
    handoff_times=st.lists(sized_times, max_size=3).map(tuple),
)


@given(samplings)
def test_sampling_survives(params: SamplingParams):
    """Every field, the unset ones included."""
    assert convert.sampling_from_proto(convert.sampling_to_proto(params)) == params


@given(choices)
def test_choices_survive(choice: ChoiceTokens):
    """Tokens, their log-probabilities and the finish reason."""
    assert convert.choice_from_proto(convert.choice_to_proto(choice)) == choice


@given(workers)
def test_workers_survive(worker: WorkerInfo):
    """With their layout."""
    assert convert.worker_from_proto(convert.worker_to_proto(worker)) == worker


@given(loads)
def test_loads_survive(load: Load):
    """With all counters."""
    assert convert.load_from_proto(convert.load_to_proto(load)) == load


@given(st.builds(Usage, counts, counts, counts), st.builds(StageTimes, *[times] * 7))
def test_usage_and_stages_survive(usage: Usage, stages: StageTimes):
    """Every field."""
    assert convert.usage_from_proto(convert.usage_to_proto(usage)) == usage
    assert convert.stages_from_proto(convert.stages_to_proto(stages)) == stages


def test_unset_sampling_fields_take_the_defaults_of_the_contract():
    """An empty message is the default parameters; a set zero is a zero."""
    assert convert.sampling_from_proto(pb.SamplingParams()) == SamplingParams()
    assert convert.sampling_from_proto(pb.SamplingParams(temperature=0, logprobs=0)) == SamplingParams(
        temperature=0.0, logprobs=0
    )


def test_out_of_range_values_are_not_bent():
    """Ranges are checked elsewhere; here nothing is lost, not even what is no number."""
    message = pb.SamplingParams(temperature=float("inf"), top_k=-5, logit_bias={7: float("nan")})
    params = convert.sampling_from_proto(message)
    assert params.temperature == float("inf")
    assert params.top_k == -5
    assert struct.pack("f", params.logit_bias[7]) == struct.pack("f", float("nan"))


def test_a_worker_that_says_nothing_is_refused():
    """With every field that is missing, under the path that the caller knows it by."""
    with pytest.raises(InvalidRequest) as caught:
        convert.worker_from_proto(pb.Worker(tier=pb.TIER_UNSPECIFIED), "sink")
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"sink.worker_id", "sink.incarnation", "sink.address", "sink.tier", "sink.layout"}
