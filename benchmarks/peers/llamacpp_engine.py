"""llama.cpp through the C interface of llama-cpp-python, batched as its server does. Runs in its environment.

A sequence for each request; a step holds one token of each that decodes, then prompts as far as there is room.
"""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import llama_cpp as llama
import numpy as np

from benchmarks.peers.driver import OnTokens, serve

_MAX_SEQS = 32
_UBATCH_TOKENS = 512


@dataclass
class _Sequence:
    """A request in a slot; `fed` are its tokens in KV, `tokens` those known so far."""

    request: int
    tokens: list[int]
    end: int
    slot: int
    fed: int = 0


class LlamacppEngine:
    """A model and one context, whose KV is divided evenly between sequences."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._log = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(self._log, None)
        llama.llama_backend_init()
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama.llama_model_load_from_file(options["model"].encode(), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {options['model']}")
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._context = self._new_context(options)
        self._batch_tokens = options["step_tokens"]
        self._batch = llama.llama_batch_init(self._batch_tokens, 0, 1)
        self._free = list(range(_MAX_SEQS))
        self._waiting: list[tuple[int, list[int], int]] = []
        self._running: list[_Sequence] = []
        self.facts = {
            "version": importlib.metadata.version("llama-cpp-python"),
            "system": llama.llama_print_system_info().decode(),
        }

    def add(self, request: int, prompt: list[int], output_tokens: int) -> None:
        """See `PeerEngine`."""
        self._waiting.append((request, prompt, output_tokens))

    def step(self, on_tokens: OnTokens) -> None:
        """See `PeerEngine`."""
        while self._free and self._waiting:
            request, prompt, output_tokens = self._waiting.pop(0)
            end = len(prompt) + output_tokens
            self._running.append(_Sequence(request, list(prompt), end, self._free.pop(0)))
        sampled = self._fill()
        if llama.llama_decode(self._context, self._batch) != 0:
            raise SystemExit("llama.cpp could not run a step; its KV may be full")
        for row, sequence in sampled:
            logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, row), shape=(self._vocab_size,))
            sequence.tokens.append(int(logits.argmax()))
            on_tokens(sequence.request, 1)
            if len(sequence.tokens) >= sequence.end:
                self._end(sequence)

    def _fill(self) -> list[tuple[int, _Sequence]]:
        """Puts the next tokens into the batch; gives the rows that are sampled from, and whose they are."""
        batch, row = self._batch, 0
        sampled: list[tuple[int, _Sequence]] = []
        # Whoever decodes has one token to feed, and comes first.
        for sequence in sorted(self._running, key=lambda each: len(each.tokens) - each.fed):
            while sequence.fed < len(sequence.tokens) and row < self._batch_tokens:
                is_last = sequence.fed == len(sequence.tokens) - 1
                batch.token[row] = sequence.tokens[sequence.fed]
                batch.pos[row] = sequence.fed
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence.slot
                batch.logits[row] = is_last
                if is_last:
                    sampled.append((row, sequence))
                sequence.fed += 1
                row += 1
        batch.n_tokens = row
        return sampled

    def _end(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._free.append(sequence.slot)
        llama.llama_memory_seq_rm(llama.llama_get_memory(self._context), sequence.slot, -1, -1)

    def _new_context(self, options: dict[str, Any]) -> Any:
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = options["max_model_len"] * _MAX_SEQS
        parameters.n_seq_max = _MAX_SEQS
        parameters.n_batch = options["step_tokens"]
        parameters.n_ubatch = _UBATCH_TOKENS
        parameters.n_threads = parameters.n_threads_batch = options["threads"]
        parameters.flash_attn_type = 1
        parameters.kv_unified = False
        context = llama.llama_init_from_model(self._model, parameters)
        if not context:
            raise SystemExit("llama.cpp cannot make a context; there may be too little memory")
        return context


if __name__ == "__main__":
    serve(LlamacppEngine)
