"""The recall skill: notes of the form `key is value` in random order, then questions about them.

A training document asks about many of its notes, because every question is a supervised look-up;
an evaluation item asks about one. Keys, values and order are drawn afresh each time.
"""

import dataclasses
import random

from scripts.demo import stories
from scripts.demo.document import END_OF_TEXT, END_OF_TURN, Document, Draft, turn
from scripts.demo.words import KEYS, VALUES

SKILL = "recall"
MAX_NOTES = 40
MAX_QUESTIONS = 16
_FILLER_FROM = 0.15

_OPENINGS = ("Remember these notes.", "Here are some notes.", "Read the notes.")
_QUESTIONS = ("What is {key}?", "What do the notes say about {key}?", "Tell me the value of {key}.")


@dataclasses.dataclass(frozen=True, slots=True)
class Notes:
    """Notes and the text they are written in.

    Attributes:
        values: What the notes say, by key, in the order in which they stand.
        body: The notes as a bulleted list, possibly with other sentences between.
        chat: Whether the questions come in chat form.
    """

    values: dict[str, str]
    body: str
    chat: bool


def notes(rng: random.Random, count: int, *, numbers: bool, chat: bool, filler: float = 0.0) -> Notes:
    """Draws notes.

    Args:
        rng: Where the draws come from.
        count: How many notes.
        numbers: Whether the values are numbers of three digits instead of words.
        chat: Whether the questions come in chat form.
        filler: How many sentences that have nothing to do with the notes follow a note on average.
    """
    keys = rng.sample(KEYS, count)
    values = {key: str(rng.randrange(100, 1000)) if numbers else rng.choice(VALUES) for key in keys}
    lines: list[str] = []
    for key, value in values.items():
        lines.append(f"- {key} is {value}\n")
        while rng.random() < filler / (1 + filler):
            lines.append(stories.sentence(rng) + "\n")
    return Notes(values, "".join(lines), chat)


def prompt(written: Notes, key: str, rng: random.Random) -> str:
    """Returns the notes and one question, up to where the answer begins."""
    if written.chat:
        question = rng.choice(_QUESTIONS).format(key=key)
        return turn("user", f"{rng.choice(_OPENINGS)}\n{written.body}{question}") + "<|assistant|>"
    return f"Notes:\n{written.body}Recall:\n- {key} is"


def answer(written: Notes, key: str) -> str:
    """Returns the answer, without the mark that ends it."""
    value = written.values[key]
    return f"The value of {key} is {value}." if written.chat else f" {value}"


def document(rng: random.Random, room: int, difficulty: float, number_difficulty: float) -> Document:
    """Returns one training document.

    Args:
        rng: Where the draws come from.
        room: About how many tokens the document may take.
        difficulty: From 0 to 1; the number of notes grows with it, and numbers and filler come in.
        number_difficulty: The same for notes whose values are numbers.
    """
    numbers, chat = difficulty > 0 and rng.random() < 0.35, rng.random() < 0.5
    most = max(3, round(4 + (MAX_NOTES - 4) * (number_difficulty if numbers else difficulty)))
    if difficulty < _FILLER_FROM:
        filler = 0.0
    else:
        filler = rng.choice((0.0, 0.0, 0.0, 0.5, 1.5)) if room < 400 else rng.choice((0.0, 0.5, 1.5, 3.0))
    per_note = 6 + 2 * numbers + 13 * filler
    most = max(2, min(most, int(room * 0.7 / per_note)))
    written = notes(rng, rng.randint(2, most), numbers=numbers, chat=chat, filler=filler)
    asked = rng.sample(list(written.values), min(len(written.values), MAX_QUESTIONS))
    return _chat(written, asked, rng) if chat else _plain(written, asked)


def _plain(written: Notes, asked: list[str]) -> Document:
    draft = Draft(SKILL, base=0.02).add(f"Notes:\n{written.body}Recall:\n")
    for key in asked:
        draft.add(f"- {key} is").answer(answer(written, key)).add("\n", 0.1)
    return draft.answer(END_OF_TEXT).document()


def _chat(written: Notes, asked: list[str], rng: random.Random) -> Document:
    draft = Draft(SKILL, base=0.02).add(prompt(written, asked[0], rng))
    for i, key in enumerate(asked):
        if i:
            draft.add(turn("user", rng.choice(_QUESTIONS).format(key=key)) + "<|assistant|>")
        # The key in the answer is itself copied from the question, so it is worth some loss.
        draft.add(f"The value of {key} is", 0.3).answer(f" {written.values[key]}.").add(END_OF_TURN, 0.3)
    return draft.document()
