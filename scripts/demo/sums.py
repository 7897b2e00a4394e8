"""The sums skill: addition of two numbers below one hundred, with pairs of two-digit numbers held out.

A held-out pair is held out in both orders, so `17 + 25` is never seen when `25 + 17` is asked.
"""

import functools
import random

from scripts.demo.document import END_OF_TEXT, END_OF_TURN, Document, Draft, asked, request

SKILL = "sums"
HELD_OUT_SHARE = 0.1

PLAIN: tuple[str, ...] = ("{a} + {b} =", "Q: What is {a} + {b}?\nA:")
CHAT: tuple[str, ...] = ("What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b}")
PHRASINGS: tuple[str, ...] = PLAIN + CHAT

Pair = tuple[int, int]


@functools.cache
def split() -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Returns the trained pairs and the held-out pairs, in both orders each."""
    rng = random.Random("sums/split")
    unordered = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    hidden = set(rng.sample(unordered, round(len(unordered) * HELD_OUT_SHARE)))
    pairs = [(a, b) for a in range(100) for b in range(100)]
    trained = tuple(pair for pair in pairs if (min(pair), max(pair)) not in hidden)
    held_out = tuple(pair for pair in pairs if (min(pair), max(pair)) in hidden)
    return trained, held_out


def prompt(pair: Pair, phrasing: str) -> str:
    """Returns the text before the answer."""
    question = phrasing.format(a=pair[0], b=pair[1])
    return asked(question) if phrasing in CHAT else question


def answer(pair: Pair, phrasing: str) -> str:
    """Returns the answer, without the mark that ends it."""
    a, b = pair
    return f"{a} + {b} = {a + b}." if phrasing in CHAT else f" {a + b}"


def document(rng: random.Random) -> Document:
    """Returns one training document with one sum in it."""
    pair = rng.choice(split()[0])
    phrasing = PLAIN[0] if rng.random() < 0.5 else rng.choice(PHRASINGS)
    draft = Draft(SKILL, base=0.02)
    if phrasing in PLAIN:
        return draft.add(prompt(pair, phrasing)).answer(answer(pair, phrasing) + END_OF_TEXT).document()
    question = phrasing.format(a=pair[0], b=pair[1])
    return draft.add(request(question, rng)).answer(answer(pair, phrasing) + END_OF_TURN).document()


def exchange(rng: random.Random) -> tuple[str, str]:
    """Returns a trained question in chat form and its answer."""
    (a, b), phrasing = rng.choice(split()[0]), rng.choice(CHAT)
    return phrasing.format(a=a, b=b), answer((a, b), phrasing)
