"""Options that say how long requests are, and which latencies they should keep to."""

import argparse

from benchmarks.flags import positive, share, span
from benchmarks.plan import Shape
from benchmarks.stats import Slo


def add_shapes(parser: argparse.ArgumentParser) -> None:
    """Lengths: of all requests, or of short ones and a share of long ones."""
    add = parser.add_argument
    add("--prompt-tokens", type=span, default="256", help="length of prompts: a count or low:high (%(default)s)")
    add("--output-tokens", type=span, default="64", help="length of answers: a count or low:high (%(default)s)")
    add("--long-share", type=share, default=0.0, help="mixed load: share of requests that are long (%(default)s)")
    add("--long-prompt-tokens", type=span, default="1024:1536", help="length of their prompts (%(default)s)")
    add("--long-output-tokens", type=span, default="16:32", help="length of their answers (%(default)s)")


def read_shapes(given: argparse.Namespace) -> list[Shape]:
    """The shapes that the options ask for."""
    usual = Shape(given.prompt_tokens, given.output_tokens, 1.0 - given.long_share)
    return [usual, Shape(given.long_prompt_tokens, given.long_output_tokens, given.long_share)]


def long_from(given: argparse.Namespace) -> int:
    """The fewest tokens of a long prompt in a mixed load, which tell long requests from short ones; 0 in any other."""
    return given.long_prompt_tokens.low if given.long_share else 0


def add_slo(parser: argparse.ArgumentParser) -> None:
    """Targets for latencies."""
    add = parser.add_argument
    add("--slo-ttft-ms", type=positive, help="target for the time to the first token")
    add("--slo-tpot-ms", type=positive, help="target for the time per further token")
    add("--slo-itl-ms", type=positive, help="target for the longest gap between two tokens of a request")


def read_slo(given: argparse.Namespace) -> Slo:
    """The targets that are set."""
    return Slo(ttft_ms=given.slo_ttft_ms, tpot_ms=given.slo_tpot_ms, itl_ms=given.slo_itl_ms)


def describe_shapes(given: argparse.Namespace) -> dict[str, object]:
    """The lengths as the report tells them."""
    long = {"long_share": given.long_share} if given.long_share else {}
    if given.long_share:
        long |= {name: str(getattr(given, name)) for name in ("long_prompt_tokens", "long_output_tokens")}
    return {"prompt_tokens": str(given.prompt_tokens), "output_tokens": str(given.output_tokens), **long}


def describe_slo(given: argparse.Namespace) -> dict[str, object]:
    """The targets as the report tells them."""
    return {name: getattr(given, name) for name in ("slo_ttft_ms", "slo_tpot_ms", "slo_itl_ms")}
