"""vLLM's engine in this process, without its API server: the best case for it. Runs in vLLM's environment."""

from typing import Any

import vllm
from vllm import EngineArgs, LLMEngine, SamplingParams

from benchmarks.peers.driver import OnTokens, serve


class VllmEngine:
    """Continuous batching with chunked prefill; the prefix cache is off."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.facts = {"version": vllm.__version__, "dtype": "bfloat16"}
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=options["model"],
                dtype="bfloat16",
                max_model_len=options["max_model_len"],
                max_num_seqs=64,
                max_num_batched_tokens=options["step_tokens"],
                enable_prefix_caching=False,
                block_size=128,
                seed=0,
                disable_log_stats=True,
            )
        )
        self._seen: dict[int, int] = {}

    def add(self, request: int, prompt: list[int], output_tokens: int) -> None:
        """See `PeerEngine`."""
        self._seen[request] = 0
        sampling = SamplingParams(
            temperature=0.0, max_tokens=output_tokens, min_tokens=output_tokens, ignore_eos=True, detokenize=False
        )
        self._engine.add_request(str(request), {"prompt_token_ids": prompt}, sampling)

    def step(self, on_tokens: OnTokens) -> None:
        """See `PeerEngine`."""
        for output in self._engine.step():
            # vLLM appends a suffix of its own to the names that it is given.
            request = int(output.request_id.partition("-")[0])
            count = len(output.outputs[0].token_ids)
            on_tokens(request, count - self._seen[request])
            self._seen[request] = count


if __name__ == "__main__":
    serve(VllmEngine)
