"""Options about peers, for the benchmarks that ask them."""

import argparse
import pathlib

from benchmarks.peers.catalog import BATON, Side, parse_side


def sides(text: str) -> tuple[Side, ...]:
    """Sides with commas between them, each once."""
    try:
        return tuple(dict.fromkeys(parse_side(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def peers(text: str) -> tuple[Side, ...]:
    """Sides that are not Baton's; nothing for an empty text."""
    found = sides(text) if text else ()
    if any(side.engine == BATON for side in found):
        raise argparse.ArgumentTypeError(
            f"{text!r} names {BATON}, which is no peer; its clusters have a flag of their own"
        )
    return found


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Where the peers are."""
    parser.add_argument(
        "--peer-folder",
        type=pathlib.Path,
        default=pathlib.Path(".baton/peers"),
        help="of the peers' environments, exported checkpoints and logs (%(default)s)",
    )
