"""The corpus: an endless, seeded mixture of the skills' documents.

It decides how often each skill speaks and how hard the lessons are; the skills write the text.
"""

import dataclasses
import random
from collections.abc import Iterator

from scripts.demo import capitals, echo, recall, smalltalk, stories, sums
from scripts.demo.document import Document

SKILLS: tuple[str, ...] = (
    capitals.SKILL,
    sums.SKILL,
    recall.SKILL,
    echo.SKILL,
    stories.SKILL,
    smalltalk.SKILL,
)


LAST_LESSON = 4500
"""The step from which nothing changes any more."""

_FACTS_FROM = 900
_NUMBERS_AGAIN_FROM = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Lesson:
    """What the corpus writes at one step of the training.

    Attributes:
        shares: How often each skill speaks, in the order of `SKILLS`.
        difficulty: From 0 (few notes, short lists) to 1.
        number_difficulty: The same for notes whose values are numbers.
    """

    shares: tuple[float, ...]
    difficulty: float
    number_difficulty: float


def lesson(step: int) -> Lesson:
    """Returns the lesson at a step of the training.

    Looking up is learned first from short lists with a large share of echoes; then longer lists
    follow and the echoes make way for facts. Finding a value is one thing and copying the later
    digits of a number another: once the first works, numbers start again from short lists. What is
    known by then leaves room for stories at the end.
    """
    difficulty = _ramp(step, 540, 3240)
    if step < _FACTS_FROM:
        return Lesson((15, 26, 30, 20, 3, 6), difficulty, difficulty)
    if step < _NUMBERS_AGAIN_FROM:
        return Lesson((22, 46, 15, 4, 5, 8), difficulty, difficulty)
    if step < LAST_LESSON:
        return Lesson((14, 28, 26, 8, 5, 8), difficulty, _ramp(step, 2700, LAST_LESSON))
    return Lesson((14, 34, 20, 3, 24, 5), 1.0, 1.0)


def _ramp(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / (end - start)))


def document(rng: random.Random, plan: Lesson, room: int) -> Document:
    """Returns one document.

    Args:
        rng: Where the draws come from.
        plan: The lesson.
        room: About how many tokens the document may take.
    """
    skill = rng.choices(SKILLS, plan.shares)[0]
    if skill == recall.SKILL:
        return recall.document(rng, room, plan.difficulty, plan.number_difficulty)
    if skill == echo.SKILL:
        return echo.document(rng, plan.difficulty)
    writers = {m.SKILL: m.document for m in (capitals, sums, stories, smalltalk)}
    return writers[skill](rng)


def sample(seed: str, count: int, plan: Lesson) -> Iterator[Document]:
    """Yields documents of one lesson; the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        yield document(rng, plan, rng.choice((128, 256, 512)))
