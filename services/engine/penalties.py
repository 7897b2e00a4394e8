"""Adjusts one row of logits by what a request asks and by what it has said so far.

The order is that of vLLM and of transformers' logits processors: bias, repetition, frequency, presence, then the mask
of tokens that may not end the output yet. Temperature and filters come later, in the sampler.
"""

import numpy as np
import torch

from services.common.sampling import SamplingParams
from services.engine.batch import SampleSpec


def needs_adjusting(spec: SampleSpec) -> bool:
    """True where `adjust_row` would change anything."""
    sampling = spec.sampling
    return sampling.has_penalties or bool(sampling.logit_bias) or (not spec.is_stop_allowed and bool(spec.stop_ids))


def adjust_row(logits: torch.Tensor, spec: SampleSpec) -> None:
    """Adjusts float32 logits [vocab_size] in place."""
    sampling = spec.sampling
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype, device=logits.device)
    if sampling.repetition_penalty != 1.0:
        _repetition(logits, spec)
    if sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0:
        _presence_and_frequency(logits, spec.output_ids, sampling)
    if not spec.is_stop_allowed and spec.stop_ids:
        logits[torch.tensor(spec.stop_ids, device=logits.device)] = float("-inf")


def _repetition(logits: torch.Tensor, spec: SampleSpec) -> None:
    """Divides positive logits of tokens in prompt or output, multiplies negative ones (CTRL, arXiv 1909.05858)."""
    seen = np.union1d(np.asarray(spec.prompt_ids, dtype=np.int64), np.asarray(spec.output_ids, dtype=np.int64))
    ids = torch.from_numpy(seen).to(logits.device)
    values, penalty = logits[ids], spec.sampling.repetition_penalty
    logits[ids] = torch.where(values > 0, values / penalty, values * penalty)


def _presence_and_frequency(logits: torch.Tensor, output_ids: object, sampling: SamplingParams) -> None:
    ids, counts = np.unique(np.asarray(output_ids, dtype=np.int64), return_counts=True)
    penalty = sampling.frequency_penalty * counts + sampling.presence_penalty
    logits[torch.from_numpy(ids).to(logits.device)] -= torch.from_numpy(penalty).to(logits)
