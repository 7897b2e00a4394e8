"""OpenVINO GenAI's continuous batching in this process, on a model exported for it. Runs in its environment."""

from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks.peers.driver import OnTokens, serve

_CACHE_GB = 3


class OpenvinoEngine:
    """Split-fuse scheduling; the prefix cache is off. With int8 weights all other precisions are its own defaults."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.facts = {"version": genai.__version__, "openvino": openvino.__version__}
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = options["step_tokens"]
        scheduler.max_num_seqs = 64
        scheduler.cache_size = _CACHE_GB
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options["threads"],
            "ENABLE_CPU_PINNING": True,
        }
        if not options["is_int8"]:
            properties |= {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"}
        self._pipeline = genai.ContinuousBatchingPipeline(options["model"], scheduler, "CPU", properties)
        self._running: dict[int, tuple[Any, int]] = {}

    def add(self, request: int, prompt: list[int], output_tokens: int) -> None:
        """See `PeerEngine`."""
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output_tokens
        config.ignore_eos = True
        config.do_sample = False
        tensor = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._running[request] = (self._pipeline.add_request(request, tensor, config), output_tokens)

    def step(self, on_tokens: OnTokens) -> None:
        """See `PeerEngine`."""
        self._pipeline.step()
        for request, (handle, left) in list(self._running.items()):
            count = 0
            while handle.can_read():
                count += sum(len(output.generated_ids) for output in handle.read().values())
            if count:
                on_tokens(request, count)
                self._running[request] = (handle, left - count)
            if count == left:
                del self._running[request]


if __name__ == "__main__":
    serve(OpenvinoEngine)
