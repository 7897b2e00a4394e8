"""What a request is run with; the process owns it all."""

from dataclasses import dataclass

from services.common.places import Places
from services.frontend.first_token_times import FirstTokenTimes
from services.frontend.members import Members
from services.frontend.metrics import FrontendMetrics
from services.frontend.releases import TicketReleases
from services.frontend.retry_budget import RetryBudget
from services.frontend.router import Router
from services.frontend.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One of each for all requests of a frontend."""

    tokenizer: Tokenizer
    admission: Places
    router: Router
    members: Members
    releases: TicketReleases
    metrics: FrontendMetrics
    budget: RetryBudget
    first_token_times: FirstTokenTimes
