"""Makes one stream of tokens out of the two legs' streams. Pure.

Both legs report the same tokens by (choice, index): prefill the first of each choice, decode all of them. What comes
second is dropped; what does not fit is a bug somewhere, and the request fails rather than show a wrong token.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.common.errors import Internal
from services.common.types import ChoiceTokens, FinishReason, Token

CONFLICT = {"kind": "merge_conflict"}


@dataclass(slots=True)
class _Seen:
    """What is known of one choice."""

    ids: list[int] = field(default_factory=list[int])
    finish: FinishReason | None = None


class TokenMerge:
    """Merges by index; keeps the ids of every choice so that a repeated token can be compared.

    `max_tokens` is how many tokens each choice may have, None until that is settled.
    """

    def __init__(self, num_choices: int) -> None:
        self._seen = [_Seen() for _ in range(num_choices)]
        self._duplicates = 0
        self.max_tokens: int | None = None

    def add(self, reported: Iterable[ChoiceTokens]) -> list[ChoiceTokens]:
        """Takes what a leg reported; returns what is new in it.

        Raises:
            Internal: an index was skipped, came again with another id, or comes after the choice's end; or a choice
                has more tokens than it may, ends with fewer because of their number, or ends without one.
        """
        fresh = [self._add_one(part) for part in reported]
        return [part for part in fresh if part.tokens or part.finish is not None]

    @property
    def emitted(self) -> dict[int, tuple[int, ...]]:
        """Token ids so far of every choice that goes on."""
        return {choice: tuple(seen.ids) for choice, seen in enumerate(self._seen) if seen.finish is None}

    @property
    def has_begun(self) -> bool:
        """True once a token came."""
        return any(seen.ids for seen in self._seen)

    @property
    def is_finished(self) -> bool:
        """True once every choice has its finish reason."""
        return all(seen.finish is not None for seen in self._seen)

    @property
    def duplicates(self) -> int:
        """Tokens that came from both legs."""
        return self._duplicates

    def _add_one(self, part: ChoiceTokens) -> ChoiceTokens:
        if not 0 <= part.choice < len(self._seen):
            raise _conflict(f"choice {part.choice} of {len(self._seen)} does not exist")
        seen = self._seen[part.choice]
        fresh = tuple(token for token in part.tokens if self._is_new(part.choice, token))
        is_last = not part.tokens or part.tokens[-1].index + 1 == len(seen.ids)
        if part.finish is None:
            return ChoiceTokens(part.choice, fresh)
        if seen.finish is None and is_last:
            self._check_end(part.choice, len(seen.ids), part.finish)
            seen.finish = part.finish
            return ChoiceTokens(part.choice, fresh, part.finish)
        if seen.finish is not part.finish or not is_last:
            raise _conflict(f"choice {part.choice} ended in two ways after {len(seen.ids)} tokens")
        return ChoiceTokens(part.choice, fresh)

    def _check_end(self, choice: int, count: int, finish: FinishReason) -> None:
        if not count or (finish is FinishReason.LENGTH and self.max_tokens not in (None, count)):
            raise _conflict(f"choice {choice} ended by {finish.value} after {count} of {self.max_tokens} tokens")

    def _is_new(self, choice: int, token: Token) -> bool:
        """Appends the token where it is the next one; False where it is known already."""
        seen = self._seen[choice]
        if not 0 <= token.index <= len(seen.ids):
            raise _conflict(f"choice {choice} lacks token {len(seen.ids)}, got token {token.index}")
        if token.index < len(seen.ids):
            if seen.ids[token.index] != token.id:
                raise _conflict(f"choice {choice} has two different tokens at index {token.index}")
            self._duplicates += 1
            return False
        if seen.finish is not None:
            raise _conflict(f"choice {choice} ended after {len(seen.ids)} tokens, yet another one came")
        if len(seen.ids) == self.max_tokens:
            raise _conflict(f"choice {choice} goes on after {self.max_tokens} tokens, all that were asked for")
        seen.ids.append(token.id)
        return True


def _conflict(what: str) -> Internal:
    message = f"the workers' answers do not fit together: {what}; this is a bug, the request was stopped"
    return Internal(message, details=CONFLICT)
