"""What a rogue sends in the place of a good message."""

import random
from typing import Any

from tests.harness.fuzz.messages import MessageFuzzer
from tests.harness.fuzz.values import Harvest


def hostile(rng: random.Random, message: Any) -> list[bytes]:
    """Nothing, the message twice, a made-up one before it, or, mostly, itself with some of it changed."""
    fuzzer = MessageFuzzer(rng, Harvest())
    good: bytes = message.SerializeToString()
    manner = rng.random()
    if manner < 0.1:
        return []
    if manner < 0.2:
        return [good, good]
    if manner < 0.35:
        made_up = type(message)()
        fuzzer.fill(made_up)
        return [fuzzer.bytes_of(made_up), good]
    for _ in range(rng.choice((1, 1, 2, 4))):
        fuzzer.mutate(message)
    return [fuzzer.bytes_of(message)]
