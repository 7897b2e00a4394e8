"""The echo skill: repeat a list of words. It makes the attention heads that recall is built on."""

import random

from scripts.demo.document import END_OF_TEXT, END_OF_TURN, Document, Draft, asked
from scripts.demo.words import KEYS, VALUES

SKILL = "echo"
_WORDS = KEYS + VALUES


def phrase(rng: random.Random, count: int) -> str:
    """Returns `count` random words."""
    return " ".join(rng.sample(_WORDS, count))


def prompt(words: str) -> str:
    """Returns the request to repeat the words, in chat form."""
    return asked(f"Repeat: {words}")


def document(rng: random.Random, difficulty: float) -> Document:
    """Returns one training document, longer as `difficulty` goes from 0 to 1."""
    words = phrase(rng, rng.randint(3, 6 + round(18 * difficulty)))
    draft = Draft(SKILL, base=0.02)
    if rng.random() < 0.5:
        return draft.add(prompt(words)).add(f"I repeat: {words}", 0.5).answer(END_OF_TURN).document()
    return draft.add(f"Once: {words}\nAgain:").add(f" {words}", 0.5).answer(END_OF_TEXT).document()
