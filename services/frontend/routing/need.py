"""What a request asks of its workers. Pure data."""

from dataclasses import dataclass, field

from services.frontend.routing.prefix import Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A request as the router sees it.

    `is_first_token_last` where prefill alone can serve it, `is_begun` where tokens were emitted already and one decode
    worker must go on with it. `most_tokens` is the longest that prompt and output may get, where that is settled.
    `avoided` workers are used only where no other can serve. `session_id` is what should stay on one worker; empty:
    nothing should. `model` is the fingerprint of the weights that emitted its tokens: no others may go on with them.
    """

    prompt_tokens: int
    is_first_token_last: bool = False
    is_begun: bool = False
    most_tokens: int = 0
    avoided: frozenset[str] = frozenset()
    session_id: str = ""
    model: str = ""
    prefix: Prefix = field(default_factory=Prefix, compare=False, repr=False)
