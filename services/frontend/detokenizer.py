"""Turns one choice's tokens into text as they come.

A character split over several tokens is held back until it is whole; special tokens have no text. Knows nothing of
stop strings.
"""

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# A character has at most four bytes; a longer run of tokens without text is not UTF-8 and is shown as it is.
_MAX_PENDING = 16
# Tokens of the prompt's end that say how the first output token is spelled (with or without its leading space).
_CONTEXT_TOKENS = 6


class Detokenizer:
    """Detokenizes one choice; the pieces add up to the text that a full decode in context of the prompt's end gives.

    `context` is the end of the prompt: tokenizers that write a word's leading space into the word drop it at the
    beginning of a text, and the output is not the beginning unless a special token comes right before it.
    """

    def __init__(self, tokenizer: Tokenizer, special_ids: Collection[int], context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        self._stream = DecodeStream(skip_special_tokens=True)
        self._shown: list[int] = []
        self._pending: list[int] = []
        for token_id in _text_tail(context, special_ids):
            self.feed(token_id)

    def feed(self, token_id: int) -> str:
        """Takes one token; returns the text that is certain now, perhaps none."""
        if token_id in self._special_ids:
            return ""
        self._pending.append(token_id)
        if len(self._pending) > _MAX_PENDING:
            return self._restart()
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception as error:
            if "prefix" not in str(error).lower():
                raise
            return self._restart()
        if text is None:
            return ""
        self._shown, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """The text of what is held back, at the end of the output; incomplete bytes become U+FFFD."""
        if not self._pending:
            return ""
        before = self._decode(self._shown)
        text = self._decode(self._shown + self._pending)
        self._shown, self._pending = self._pending, []
        return text[len(before) :] if text.startswith(before) else text

    def _restart(self) -> str:
        """Shows what is held back and goes on with a fresh stream."""
        text = self.flush()
        self._stream = DecodeStream(skip_special_tokens=True)
        for token_id in self._shown:
            self._stream.step(self._tokenizer, token_id)
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)


def _text_tail(context: Sequence[int], special_ids: Collection[int]) -> list[int]:
    """The last ordinary tokens of the prompt, none where it ends with a special token."""
    tail: list[int] = []
    for token_id in reversed(context[-_CONTEXT_TOKENS:]):
        if token_id in special_ids:
            break
        tail.append(token_id)
    return tail[::-1]
