"""The capitals skill: every country in every phrasing, but for a few phrasings held out per country.

An item is a country and a phrasing. The model sees every country and every phrasing in training,
so a held-out item asks whether it knows the fact apart from the sentence it was taught in.
"""

import functools
import random

from scripts.demo.countries import CAPITALS
from scripts.demo.document import END_OF_TEXT, END_OF_TURN, Document, Draft, asked, request

SKILL = "capitals"
HELD_OUT_PER_COUNTRY = 2

PLAIN: tuple[str, ...] = (
    "The capital of {country} is",
    "The capital city of {country} is",
    "Q: What is the capital of {country}?\nA:",
    "Country: {country}\nCapital:",
    "Capital of {country}:",
    "When you travel to {country}, visit the capital,",
)
CHAT: tuple[str, ...] = (
    "What is the capital of {country}?",
    "What is the capital city of {country}?",
    "Which city is the capital of {country}?",
    "Tell me the capital of {country}.",
    "Name the capital of {country}.",
    "Do you know the capital of {country}?",
    "capital of {country}?",
    "Please tell me what the capital of {country} is.",
)
PHRASINGS: tuple[str, ...] = PLAIN + CHAT

_WHERE_PLAIN = "{capital} is the capital of"
_WHERE_CHAT = "Which country has the capital {capital}?"

Item = tuple[str, str]
"""A country and a phrasing."""


@functools.cache
def split() -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Returns the trained items and the held-out items; the same on every call and every machine."""
    rng = random.Random("capitals/split")
    trained: list[Item] = []
    held_out: list[Item] = []
    for country in CAPITALS:
        hidden = rng.sample(PHRASINGS, HELD_OUT_PER_COUNTRY)
        for phrasing in PHRASINGS:
            (held_out if phrasing in hidden else trained).append((country, phrasing))
    return tuple(trained), tuple(held_out)


def prompt(item: Item) -> str:
    """Returns the text before the answer."""
    country, phrasing = item
    question = phrasing.format(country=country)
    return asked(question) if phrasing in CHAT else question


def answer(item: Item) -> str:
    """Returns the answer, without the mark that ends it."""
    country, phrasing = item
    if phrasing in CHAT:
        return f"The capital of {country} is {CAPITALS[country]}."
    return f" {CAPITALS[country]}."


def document(rng: random.Random) -> Document:
    """Returns one training document: one item, or now and then the question turned round."""
    draft = Draft(SKILL)
    if rng.random() < 0.1:
        return _turned_round(rng, draft)
    item = rng.choice(split()[0])
    if item[1] in PLAIN:
        return draft.add(prompt(item)).answer(answer(item) + END_OF_TEXT).document()
    question = item[1].format(country=item[0])
    return draft.add(request(question, rng)).answer(answer(item) + END_OF_TURN).document()


def exchange(rng: random.Random) -> tuple[str, str]:
    """Returns a trained question in chat form and its answer."""
    country, phrasing = rng.choice([item for item in split()[0] if item[1] in CHAT])
    return phrasing.format(country=country), answer((country, phrasing))


def _turned_round(rng: random.Random, draft: Draft) -> Document:
    country, capital = rng.choice(tuple(CAPITALS.items()))
    if rng.random() < 0.5:
        return draft.add(_WHERE_PLAIN.format(capital=capital)).answer(f" {country}.{END_OF_TEXT}").document()
    draft.add(request(_WHERE_CHAT.format(capital=capital), rng))
    return draft.answer(f"{capital} is the capital of {country}.{END_OF_TURN}").document()
