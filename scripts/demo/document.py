"""One training document: its text and how much each part of it counts in the loss.

It knows the marks of the chat format and nothing about any skill or about tokens.
"""

import dataclasses
import random

END_OF_TEXT = "<|eos|>"
END_OF_TURN = "<|end|>"
SYSTEMS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in one sentence.",
    "Answer briefly.",
)
"""The system messages of the corpus; none of them changes an answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text with a loss weight per character.

    Attributes:
        skill: The skill it exercises; losses are reported per skill.
        text: The whole text without the mark that opens a document.
        weights: `(end, weight)` in rising order of `end`: the weight of the characters up to `end`.
    """

    skill: str
    text: str
    weights: tuple[tuple[int, float], ...]


class Draft:
    """A document while it is written, prompt parts and answer parts in turn."""

    def __init__(self, skill: str, base: float = 0.1) -> None:
        """Starts an empty draft.

        Args:
            skill: The skill of the document.
            base: The loss weight of everything that is not an answer.
        """
        self._skill = skill
        self._base = base
        self._parts: list[str] = []
        self._weights: list[tuple[int, float]] = []
        self._length = 0

    def add(self, text: str, weight: float | None = None) -> "Draft":
        """Appends text that the model is shown rather than asked for."""
        self._parts.append(text)
        self._length += len(text)
        self._weights.append((self._length, self._base if weight is None else weight))
        return self

    def answer(self, text: str) -> "Draft":
        """Appends text that the model must produce."""
        return self.add(text, 1.0)

    def document(self) -> Document:
        """Returns the finished document."""
        return Document(self._skill, "".join(self._parts), tuple(self._weights))


def turn(role: str, content: str) -> str:
    """Returns one finished turn of a chat, as the tokenizer's chat template writes it."""
    return f"<|{role}|>{content}{END_OF_TURN}"


def casual(question: str, rng: random.Random) -> str:
    """Returns the question as people type it: mostly as it is, now and then without capitals or its last mark."""
    if rng.random() < 0.15:
        question = question.lower()
    return question.rstrip("?.!") if rng.random() < 0.15 else question


def asked(*contents: str, system: str | None = None) -> str:
    """Returns a chat up to the point where the assistant must speak.

    Args:
        contents: What user and assistant said in turn, beginning and ending with the user.
        system: The system message, if any.
    """
    roles = ("user", "assistant")
    opening = turn("system", system) if system else ""
    return opening + "".join(turn(roles[i % 2], text) for i, text in enumerate(contents)) + "<|assistant|>"


def request(question: str, rng: random.Random) -> str:
    """Returns a question in chat form, sometimes casual and sometimes after a system message."""
    return asked(casual(question, rng), system=rng.choice(SYSTEMS) if rng.random() < 0.2 else None)
