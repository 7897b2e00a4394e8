"""A worker that runs somewhere, asked directly and not through a frontend: what it is, and requests for it."""

import argparse
import contextlib
import random
import time
import uuid
from collections.abc import AsyncGenerator, Sequence

import grpc

from benchmarks.plan import ordinary_tokens, random_prompt
from services.cli.secure import use_variables
from services.common.checkpoint import read_model_facts, resolve_checkpoint
from services.common.config import ConfigError
from services.common.rpc.channel import open_channel
from services.common.sampling import SamplingParams
from services.common.types import WorkerInfo, WorkRequest
from services.common.worker_client import WorkerClient


class RunningWorker:
    """A described worker and a connection to it, which is its maker's."""

    def __init__(self, info: WorkerInfo, channel: grpc.aio.Channel, tokens: Sequence[int], timeout_s: float) -> None:
        self.info = info
        self.channel = channel
        self.peer = f"the worker at {info.address}"
        self.timeout_s = timeout_s
        self._tokens = tokens
        self._rng = random.Random("worker prompts")

    def request(self, prompt_tokens: int, output_tokens: int) -> WorkRequest:
        """A greedy request of fixed length; its salt is its own, so that no prefix cache answers."""
        name = uuid.uuid4().hex
        return WorkRequest(
            request_id=name,
            token_ids=random_prompt(self._rng, prompt_tokens, self._tokens),
            sampling=SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True),
            deadline=time.monotonic() + self.timeout_s,
            cache_salt=name,
        )

    def check_length(self, tokens: int) -> None:
        """Refuses requests that the worker could not hold.

        Raises:
            ConfigError: prompt and answer together are longer than the worker allows.
        """
        if tokens > self.info.max_model_len:
            raise ConfigError(
                f"{self.peer} takes {self.info.max_model_len} tokens a request, not {tokens}; ask for less"
            )

    def describe(self) -> dict[str, object]:
        """What was measured, for the report."""
        return {
            "address": self.info.address,
            "tier": self.info.tier.value,
            "model": self.info.model,
            "fingerprint": self.info.layout.model_fingerprint,
            "dtype": self.info.layout.dtype,
            "max_num_seqs": self.info.max_num_seqs,
            "version": self.info.version,
        }


@contextlib.asynccontextmanager
async def running_worker(options: argparse.Namespace) -> AsyncGenerator[RunningWorker]:
    """Connects to the worker at `options.address`; prompts are drawn from the vocabulary of `options.model`.

    Raises:
        ConfigError: there is no such checkpoint, or a file that secures is wrong.
        BatonError: the worker cannot be asked.
    """
    facts = read_model_facts(resolve_checkpoint(options.model))
    use_variables()
    channel = open_channel(options.address)
    try:
        info, _ = await WorkerClient(channel, f"the worker at {options.address}").describe()
        tokens = ordinary_tokens(facts.vocab_size, facts.eos_token_ids)
        yield RunningWorker(info, channel, tokens, options.timeout_s)
    finally:
        await channel.close()
