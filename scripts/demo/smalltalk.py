"""The small-talk skill: everyday questions in chat form, with or without a system message.

Longer chats pass through capitals and sums too. Questions beyond the model's reach get an answer
that says so, instead of an invented one.
"""

import random

from scripts.demo import capitals, sums
from scripts.demo.document import END_OF_TURN, SYSTEMS, Document, Draft, asked, casual
from scripts.demo.words import ANIMALS, DAYS, MONTHS, NAMES, THINGS

SKILL = "smalltalk"

WHO = "I am Baton's demo model, a very small language model trained on generated text."
WHAT = "I can name capital cities, add two numbers, recall notes that you give me, repeat words and tell short stories."
UNKNOWN = "I do not know that. I am a very small model, and I only know a few things."

ANSWERS: dict[str, tuple[str, ...]] = {
    "Hello! How can I help you?": ("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hello there", "Good morning!"),
    "I am fine, thank you. How can I help you?": ("How are you?", "How are you today?", "How do you do?"),
    WHO: ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself."),
    WHAT: ("What can you do?", "How can you help me?", "What do you know?", "Help", "What can I ask you?"),
    "You are welcome!": ("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!"),
    "Goodbye! Come back soon.": ("Goodbye!", "Bye!", "See you later.", "Good night!"),
    "A week has seven days.": ("How many days are in a week?", "How many days does a week have?"),
    "A year has twelve months.": ("How many months are in a year?", "How many months does a year have?"),
    "The sky is blue.": ("What colour is the sky?", "What color is the sky?"),
    "Grass is green.": ("What colour is grass?", "What color is grass?"),
}
_BEYOND = (
    "Who invented the {thing}?",
    "How old is {name}?",
    "Where does {name} live?",
    "How much does a {thing} cost?",
    "Why does a {animal} sleep?",
    "Can you write a program?",
    "What is the weather today?",
    "What time is it?",
    "Who wrote this book?",
    "Translate this text.",
)


def _after(rng: random.Random) -> tuple[str, str]:
    names, kind = (DAYS, "day") if rng.random() < 0.5 else (MONTHS, "month")
    i = rng.randrange(len(names))
    following = names[(i + 1) % len(names)]
    return f"Which {kind} comes after {names[i]}?", f"{following} comes after {names[i]}."


def _count(rng: random.Random) -> tuple[str, str]:
    first = rng.randrange(0, 20)
    last = first + rng.randrange(2, 10)
    return f"Count from {first} to {last}.", ", ".join(str(n) for n in range(first, last + 1)) + "."


def exchange(rng: random.Random) -> tuple[str, str]:
    """Returns one question and its answer."""
    draw = rng.random()
    if draw < 0.6:
        answer = rng.choice(tuple(ANSWERS))
        return rng.choice(ANSWERS[answer]), answer
    if draw < 0.75:
        slots = {"thing": rng.choice(THINGS), "name": rng.choice(NAMES), "animal": rng.choice(ANIMALS)}
        return rng.choice(_BEYOND).format(**slots), UNKNOWN
    return _after(rng) if draw < 0.88 else _count(rng)


def document(rng: random.Random) -> Document:
    """Returns a chat of one to four exchanges."""
    system = rng.choice(SYSTEMS) if rng.random() < 0.3 else None
    draft = Draft(SKILL)
    for i in range(rng.choice((1, 1, 2, 3, 4))):
        teller = rng.choices((exchange, capitals.exchange, sums.exchange), (3, 1, 1))[0] if i else exchange
        question, answer = teller(rng)
        draft.add(asked(casual(question, rng), system=None if i else system)).add(answer + END_OF_TURN, 0.5)
    return draft.document()
