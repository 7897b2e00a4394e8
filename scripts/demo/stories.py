"""The stories skill: short stories from templates, and single sentences as filler for other skills."""

import random

from scripts.demo.document import END_OF_TEXT, END_OF_TURN, Document, Draft, request
from scripts.demo.words import ADJECTIVES, ANIMALS, COLOURS, FOODS, NAMES, PLACES, THINGS

SKILL = "stories"

_BEGINNINGS = (
    "Once upon a time there was a {adjective} {animal} named {name}. {name} lived in a {place}.",
    "In a {place} there lived a {adjective} {animal} called {name}.",
    "{name} was a {adjective} {animal} who lived near a {place}.",
)
_EVENTS = (
    "One morning, {name} found a {colour} {thing} under a tree.",
    "One day, {name} lost a {colour} {thing} and began to look for it.",
    "One evening, a friend gave {name} a {colour} {thing}.",
)
_MEETINGS = (
    "On the way {name} met {friend} the {other}.",
    "Then {friend} the {other} came along the road.",
    "{friend} the {other} heard about it and came to help.",
)
_SPEECH = (
    '"What a nice {thing}!" said {friend}.',
    '"Is that your {thing}?" asked {friend}.',
    '"I have never seen such a {colour} {thing}," said {friend}.',
)
_DEEDS = (
    "{name} and {friend} took the {thing} to the {goal}.",
    "{name} showed the {thing} to everyone in the {goal}.",
    "They hid the {thing} in the {goal} and told nobody.",
)
_ENDINGS = (
    "In the end they sat down and ate {food} together.",
    "That night {name} slept well and dreamed of the {colour} {thing}.",
    "From that day on, {name} and {friend} were best friends.",
)
_PARTS = (_BEGINNINGS, _EVENTS, _MEETINGS, _SPEECH, _DEEDS, _ENDINGS)
_REQUESTS = ("Tell me a story about a {animal}.", "Write a short story about a {animal}.")
_OPEN_REQUESTS = ("Tell me a story.", "Tell me a short story.", "Write a story.")
_SENTENCES = (
    "The {animal} walked to the {place} and ate some {food}.",
    "{name} saw a {colour} {thing} in the {place}.",
    "It was a quiet day in the {place}, and {name} was {adjective}.",
    "{friend} told {name} about the {adjective} {animal}.",
)


def _cast(rng: random.Random) -> dict[str, str]:
    name, friend = rng.sample(NAMES, 2)
    animal, other = rng.sample(ANIMALS, 2)
    place, goal = rng.sample(PLACES, 2)
    return {
        "name": name,
        "friend": friend,
        "animal": animal,
        "other": other,
        "place": place,
        "goal": goal,
        "adjective": rng.choice(ADJECTIVES),
        "thing": rng.choice(THINGS),
        "colour": rng.choice(COLOURS),
        "food": rng.choice(FOODS),
    }


def sentence(rng: random.Random) -> str:
    """Returns one sentence that stands on its own."""
    return rng.choice(_SENTENCES).format(**_cast(rng))


def document(rng: random.Random) -> Document:
    """Returns one story, bare or as the answer to a request for one."""
    cast = _cast(rng)
    text = " ".join(rng.choice(part).format(**cast) for part in _PARTS)
    draft = Draft(SKILL)
    if rng.random() < 0.5:
        # A name or a colour cannot be known beforehand; a lower weight keeps that noise small.
        return draft.add(text, 0.3).answer(END_OF_TEXT).document()
    wish = rng.choice(_REQUESTS).format(**cast) if rng.random() < 0.7 else rng.choice(_OPEN_REQUESTS)
    return draft.add(request(wish, rng)).add(text, 0.3).answer(END_OF_TURN).document()
