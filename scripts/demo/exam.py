"""The exam: held-out items per skill, each a prompt and the one completion that counts as right."""

import dataclasses
import random
from collections.abc import Callable

from scripts.demo import capitals, echo, recall, smalltalk, sums
from scripts.demo.document import asked

LINE = "\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        prompt: What the model is given.
        answer: What it must complete it with, exactly, before it ends its turn.
        stop: Where a completion is cut off as well, if anywhere.
    """

    prompt: str
    answer: str
    stop: str | None = None


def _capitals(rng: random.Random, phrasings: tuple[str, ...]) -> Item:
    held_out = [item for item in capitals.split()[1] if item[1] in phrasings]
    item = rng.choice(held_out)
    return Item(capitals.prompt(item), capitals.answer(item))


def _sums(rng: random.Random, phrasings: tuple[str, ...]) -> Item:
    pair, phrasing = rng.choice(sums.split()[1]), rng.choice(phrasings)
    return Item(sums.prompt(pair, phrasing), sums.answer(pair, phrasing))


def _recall(rng: random.Random, count: int, *, numbers: bool, chat: bool, filler: float = 0.0) -> Item:
    written = recall.notes(rng, count, numbers=numbers, chat=chat, filler=filler)
    key = rng.choice(list(written.values))
    return Item(recall.prompt(written, key, rng), recall.answer(written, key), None if chat else LINE)


def _echo(rng: random.Random) -> Item:
    words = echo.phrase(rng, 10)
    return Item(echo.prompt(words), f"I repeat: {words}")


def _smalltalk(rng: random.Random) -> Item:
    question, answer = smalltalk.exchange(rng)
    return Item(asked(question), answer)


PAPERS: dict[str, Callable[[random.Random], Item]] = {
    "capitals_plain": lambda rng: _capitals(rng, capitals.PLAIN),
    "capitals_chat": lambda rng: _capitals(rng, capitals.CHAT),
    "sums_plain": lambda rng: _sums(rng, sums.PLAIN[:1]),
    "sums_chat": lambda rng: _sums(rng, sums.CHAT),
    "recall_5_words": lambda rng: _recall(rng, 5, numbers=False, chat=False),
    "recall_10_words": lambda rng: _recall(rng, 10, numbers=False, chat=False),
    "recall_20_words": lambda rng: _recall(rng, 20, numbers=False, chat=False),
    "recall_20_words_chat": lambda rng: _recall(rng, 20, numbers=False, chat=True),
    "recall_20_numbers": lambda rng: _recall(rng, 20, numbers=True, chat=False),
    "recall_20_numbers_chat": lambda rng: _recall(rng, 20, numbers=True, chat=True),
    "recall_40_words": lambda rng: _recall(rng, 40, numbers=False, chat=False),
    "recall_20_words_among_sentences": lambda rng: _recall(rng, 20, numbers=False, chat=False, filler=3.0),
    "echo_10_words": _echo,
    "smalltalk": _smalltalk,
}
"""The skill papers. `among_sentences` makes prompts of about eight hundred tokens, some beyond the trained width."""


def items(paper: str, count: int) -> list[Item]:
    """Returns the items of a paper: the same ones for the same count, and never a repeated one."""
    rng = random.Random(f"exam/{paper}")
    drawn: dict[str, Item] = {}
    for _ in range(count * 20):
        item = PAPERS[paper](rng)
        drawn[item.prompt] = item
        if len(drawn) == count:
            break
    return list(drawn.values())
