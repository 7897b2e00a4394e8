"""When requests arrive. Pure."""

import itertools
import random


def poisson_arrivals(rate: float, count: int, seed: int) -> tuple[float, ...]:
    """Arrival times in seconds of a Poisson process; the first request comes at 0.

    Args:
        rate: requests per second on average.
        count: how many requests.
        seed: the same seed gives the same times.

    Raises:
        ValueError: the rate is not above 0.
    """
    if not rate > 0:
        raise ValueError(f"the rate is {rate}; it must be above 0")
    if count <= 0:
        return ()
    rng = random.Random(f"arrivals/{seed}")
    gaps = (rng.expovariate(rate) for _ in range(count - 1))
    return tuple(itertools.accumulate(gaps, initial=0.0))


def at_once(count: int) -> tuple[float, ...]:
    """Arrival times of requests that are all there from the start, as in a closed loop."""
    return (0.0,) * max(0, count)
