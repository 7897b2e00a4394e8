"""transformers' own `generate` in this process: static batches of requests that are equally long."""

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.peers.driver import OnTokens, serve


class TransformersEngine:
    """Runs whoever waits, as far as equally long, to the end of all; who comes meanwhile waits."""

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self.facts = {"version": transformers.__version__, "torch": torch.__version__, "dtype": "bfloat16"}
        model = AutoModelForCausalLM.from_pretrained(
            options["model"], dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
        )
        self._model = model.eval()
        self._waiting: list[tuple[int, list[int], int]] = []

    def add(self, request: int, prompt: list[int], output_tokens: int) -> None:
        """See `PeerEngine`."""
        self._waiting.append((request, prompt, output_tokens))

    @torch.inference_mode()
    def step(self, on_tokens: OnTokens) -> None:
        """See `PeerEngine`; a step is a whole batch."""
        if not self._waiting:
            time.sleep(0.001)
            return
        _, prompt, output_tokens = self._waiting[0]
        fits = [len(other) == len(prompt) and count == output_tokens for _, other, count in self._waiting]
        batch = [row for row, does_fit in zip(self._waiting, fits, strict=True) if does_fit]
        self._waiting = [row for row, does_fit in zip(self._waiting, fits, strict=True) if not does_fit]
        ids = torch.tensor([prompt for _, prompt, _ in batch])
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_tokens,
            min_new_tokens=output_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([_Tick([request for request, _, _ in batch], on_tokens)]),
        )


class _Tick(LogitsProcessor):
    """Is called once a step, with the logits from which the next token of each request is chosen."""

    def __init__(self, requests: list[int], on_tokens: OnTokens) -> None:
        self._requests = requests
        self._on_tokens = on_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for request in self._requests:
            self._on_tokens(request, 1)
        return scores


if __name__ == "__main__":
    serve(TransformersEngine)
