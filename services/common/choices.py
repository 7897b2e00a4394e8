"""Tokens of several choices on their way."""

from collections.abc import Sequence

from services.common.types import ChoiceTokens


def join_choices(parts: Sequence[ChoiceTokens]) -> tuple[ChoiceTokens, ...]:
    """Parts in order, those of one choice as one."""
    if len(parts) == 1:
        return (parts[0],)
    joined: dict[int, ChoiceTokens] = {}
    for part in parts:
        before = joined.get(part.choice)
        tokens = (*before.tokens, *part.tokens) if before else part.tokens
        joined[part.choice] = ChoiceTokens(part.choice, tokens, part.finish)
    return tuple(joined.values())
