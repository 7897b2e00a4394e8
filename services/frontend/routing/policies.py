"""The policies by the names that settings use. Pure."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.common.types import Tier
from services.frontend.routing.load import least_requests, token_aware
from services.frontend.routing.policy import Policy
from services.frontend.routing.prefix_aware import PrefixAware
from services.frontend.routing.rotation import round_robin, weighted
from services.frontend.routing.session_affinity import SessionAffinity


class PolicyName(enum.Enum):
    """How the workers of a tier are chosen; `docs/routing.md` says when to use which."""

    ROUND_ROBIN = "round-robin"
    WEIGHTED = "weighted"
    LEAST_REQUESTS = "least-requests"
    TOKEN_AWARE = "token-aware"
    PREFIX_AWARE = "prefix-aware"
    SESSION = "session"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """The policy of each tier; `session_load_factor` is how overloaded a session's own worker may be.

    `has_shortcuts` where decode may run a prompt itself although it could be split (`shortcut.py`).
    """

    prefill: PolicyName = PolicyName.TOKEN_AWARE
    decode: PolicyName = PolicyName.TOKEN_AWARE
    session_load_factor: float = 1.25
    has_shortcuts: bool = False

    @property
    def needs_blocks(self) -> frozenset[Tier]:
        """Tiers of which something wants to know what the prefix caches hold; those that decode run prompts, too."""
        tiers: set[Tier] = {Tier.PREFILL, Tier.DECODE} if self.has_shortcuts else set()
        if self.prefill is PolicyName.PREFIX_AWARE:
            tiers.add(Tier.PREFILL)
        if self.decode is PolicyName.PREFIX_AWARE:
            tiers |= {Tier.DECODE, Tier.COLOCATED}
        return frozenset(tiers)

    def make(self, tier: Tier) -> Policy:
        """The policy of a tier, fresh."""
        makers: Mapping[PolicyName, Callable[[], Policy]] = {
            PolicyName.ROUND_ROBIN: round_robin,
            PolicyName.WEIGHTED: weighted,
            PolicyName.LEAST_REQUESTS: least_requests,
            PolicyName.TOKEN_AWARE: lambda: token_aware(tier),
            PolicyName.PREFIX_AWARE: lambda: PrefixAware(tier),
            PolicyName.SESSION: lambda: SessionAffinity(tier, self.session_load_factor),
        }
        return makers[self.of(tier)]()

    def of(self, tier: Tier) -> PolicyName:
        """The name of a tier's policy."""
        return self.prefill if tier is Tier.PREFILL else self.decode
