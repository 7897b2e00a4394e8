"""Turns the merged tokens of a request into the deltas that the client gets: detokenized, cut at stop strings.

Knows nothing of workers, nor of how deltas travel.
"""

from collections.abc import Callable, Iterable

from services.common.sampling import SamplingParams
from services.common.types import ChoiceTokens, FinishReason, Token
from services.frontend.detokenizer import Detokenizer
from services.frontend.request import Delta
from services.frontend.stop_strings import StopStrings


class ChoiceText:
    """The text of one choice.

    The first `min_tokens` tokens are shown unseen by the stop strings, so a stop string lies wholly behind them.
    """

    def __init__(self, choice: int, detokenizer: Detokenizer, sampling: SamplingParams) -> None:
        self._choice = choice
        self._detokenizer = detokenizer
        self._stops = StopStrings(sampling.stop)
        self._min_tokens = sampling.min_tokens
        self.finish: FinishReason | None = None
        self.num_tokens = 0

    def add(self, part: ChoiceTokens) -> Delta | None:
        """Takes the next tokens; None where the choice had ended before."""
        if self.finish is not None:
            return None
        text: list[str] = []
        used: list[Token] = []
        match = ""
        for token in part.tokens:
            used.append(token)
            match = self._scan(self._detokenizer.feed(token.id), text, is_free=token.index < self._min_tokens)
            if match:
                break
        if part.finish is not None and not match:
            match = self._scan(self._detokenizer.flush(), text) or self._end(text)
        self.num_tokens += len(used)
        self.finish = FinishReason.STOP if match else part.finish
        return Delta(choice=self._choice, text="".join(text), tokens=tuple(used), finish=self.finish, stop_match=match)

    def _scan(self, piece: str, text: list[str], *, is_free: bool = False) -> str:
        """Appends what is certain of the piece to `text`; returns the stop string that it completes, if any."""
        if not piece or is_free:
            text.append(piece)
            return ""
        scan = self._stops.feed(piece)
        text.append(scan.text)
        return scan.match

    def _end(self, text: list[str]) -> str:
        text.append(self._stops.flush())
        return ""


class OutputText:
    """The text of all choices of a request."""

    def __init__(self, sampling: SamplingParams, new_detokenizer: Callable[[], Detokenizer]) -> None:
        self._choices = [ChoiceText(choice, new_detokenizer(), sampling) for choice in range(sampling.n)]

    def add(self, parts: Iterable[ChoiceTokens]) -> tuple[Delta, ...]:
        """Takes merged tokens; returns one delta for each part that still counts."""
        deltas = (self._choices[part.choice].add(part) for part in parts)
        return tuple(delta for delta in deltas if delta is not None)

    @property
    def open_choices(self) -> set[int]:
        """Choices that go on."""
        return {place for place, choice in enumerate(self._choices) if choice.finish is None}

    @property
    def is_finished(self) -> bool:
        """True once every choice has ended, by its tokens or by a stop string."""
        return all(choice.finish is not None for choice in self._choices)

    @property
    def num_tokens(self) -> int:
        """Tokens shown to the client, all choices together."""
        return sum(choice.num_tokens for choice in self._choices)
