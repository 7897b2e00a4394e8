"""Text to token ids and back, off the event loop.

The tokenizer is the checkpoint's own `tokenizer.json`. Encoding releases the GIL, so it runs in a few threads; how many
calls may wait for them is bounded.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer as Vocabulary

from services.common.config import ConfigError
from services.common.errors import FieldViolation, InvalidRequest, QueueFull
from services.frontend.chat_template import ChatTemplate, load_chat_template
from services.frontend.detokenizer import Detokenizer
from services.frontend.request import NO_CHAT_TEMPLATE, ChatPrompt, Prompt, TextPrompt, TokenPrompt

T = TypeVar("T")

_RETRY_AFTER_S = 0.2


class Tokenizer:
    """A checkpoint's tokenizer and chat template behind a bounded pool of threads."""

    def __init__(
        self, vocabulary: Vocabulary, template: ChatTemplate | None, *, threads: int, max_waiting: int
    ) -> None:
        # Both may be stored in tokenizer.json by whoever trained it; a server must neither cut nor pad.
        vocabulary.no_truncation()
        vocabulary.no_padding()
        self._vocabulary = vocabulary
        self._template = template
        added = vocabulary.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._max_pending = threads + max_waiting
        self._pending = 0
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="tokenizer")

    async def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt.

        Text gets the special tokens of the checkpoint's post-processor; a rendered chat has them in it already.

        Cancel: safe; the thread finishes for itself.

        Raises:
            InvalidRequest: the checkpoint has no chat template, or its template refuses the messages.
            QueueFull: too many calls wait for the threads.
        """
        if isinstance(prompt, TokenPrompt):
            return prompt.token_ids
        return await self._in_pool(lambda: self._encode(prompt))

    async def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out.

        Raises:
            QueueFull: too many calls wait for the threads.
        """
        return await self._in_pool(lambda: self._vocabulary.decode(list(token_ids), skip_special_tokens=True))

    def new_detokenizer(self, context: Sequence[int]) -> Detokenizer:
        """A detokenizer for output that follows the prompt `context`."""
        return Detokenizer(self._vocabulary, self._special_ids, context)

    def close(self) -> None:
        """Stops the threads; calls that wait are cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stats(self) -> dict[str, int]:
        """Calls that run or wait."""
        return {"tokenizer_calls": self._pending}

    def _encode(self, prompt: TextPrompt | ChatPrompt) -> tuple[int, ...]:
        if isinstance(prompt, TextPrompt):
            return tuple(self._vocabulary.encode(prompt.text, add_special_tokens=True).ids)
        if self._template is None:
            raise InvalidRequest(FieldViolation("chat", NO_CHAT_TEMPLATE))
        text = self._template.render(prompt.messages)
        return tuple(self._vocabulary.encode(text, add_special_tokens=False).ids)

    async def _in_pool(self, call: Callable[[], T]) -> T:
        if self._pending >= self._max_pending:
            message = f"{self._pending} texts wait for the tokenizer, which is all this frontend takes; try again later"
            raise QueueFull(message, retry_after_s=_RETRY_AFTER_S)
        self._pending += 1
        running = asyncio.get_running_loop().run_in_executor(self._pool, call)
        # Counted until the thread is done with it, also where nobody waits any more.
        running.add_done_callback(self._done)
        return await asyncio.shield(running)

    def _done(self, running: asyncio.Future[T]) -> None:
        self._pending -= 1
        if not running.cancelled():
            running.exception()


def load_tokenizer(folder: Path, *, threads: int, max_waiting: int) -> Tokenizer:
    """Loads the tokenizer of a checkpoint folder.

    Raises:
        ConfigError: the folder has no `tokenizer.json`, or none that can be read.
    """
    path = folder / "tokenizer.json"
    try:
        vocabulary = Vocabulary.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        how = "transformers' save_pretrained writes one for any fast tokenizer"
        raise ConfigError(f"model {folder}: tokenizer.json cannot be read ({error}); {how}") from error
    return Tokenizer(vocabulary, load_chat_template(folder), threads=threads, max_waiting=max_waiting)
