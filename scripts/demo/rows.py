"""Rows of tokens with loss weights: documents packed end to end into fixed shapes.

A document may end at the edge of its row and is not continued. Documents of one row can see each
other, as the mark before each of them is all that tells the model to forget.
"""

import dataclasses
import random

import numpy as np
from tokenizers import Tokenizer

from scripts.demo import corpus
from scripts.demo.document import Document

_SMALLEST_ROOM = 24


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one width.

    Attributes:
        ids: Token ids, `[rows, width]`.
        weights: How much the prediction *of* each token counts, `[rows, width]`.
        skills: Index into `corpus.SKILLS` of each token's document, `[rows, width]`.
    """

    ids: np.ndarray
    weights: np.ndarray
    skills: np.ndarray


def encode(tokenizer: Tokenizer, document: Document) -> tuple[list[int], list[float]]:
    """Returns a document's tokens, the opening mark first, and their loss weights."""
    encoding = tokenizer.encode(document.text)
    ids, offsets = encoding.ids, encoding.offsets
    weights = [0.0] * len(ids)
    parts = iter(document.weights)
    end, weight = next(parts)
    for i in range(1, len(ids)):
        while offsets[i][1] > end:
            end, weight = next(parts)
        weights[i] = weight
    return ids, weights


def widths(step: int) -> dict[int, float]:
    """Returns how often each row width is drawn at a step of the training."""
    if step < 1080:
        return {128: 0.7, 256: 0.3}
    if step < 3150:
        return {128: 0.35, 256: 0.5, 512: 0.15}
    return {128: 0.28, 256: 0.45, 512: 0.21, 1024: 0.06}


def batch(tokenizer: Tokenizer, rng: random.Random, step: int, tokens: int) -> Batch:
    """Draws the batch of a step, of about `tokens` tokens."""
    choices = widths(step)
    width = rng.choices(tuple(choices), tuple(choices.values()))[0]
    shape = (max(1, tokens // width), width)
    drawn = Batch(np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.int64))
    plan = corpus.lesson(step)
    for row in range(shape[0]):
        at = 0
        while at < width:
            document = corpus.document(rng, plan, max(_SMALLEST_ROOM, width - at))
            ids, weights = encode(tokenizer, document)
            stop = min(width, at + len(ids))
            drawn.ids[row, at:stop] = ids[: stop - at]
            drawn.weights[row, at:stop] = weights[: stop - at]
            drawn.skills[row, at:stop] = corpus.SKILLS.index(document.skill)
            at = stop
    return drawn
