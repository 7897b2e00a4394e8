"""When a worker is used: the rules that all members of a frontend share."""

from dataclasses import dataclass, field

from services.common.types import Tier
from services.frontend.reachability import Thresholds
from services.frontend.routing.ejection import EjectionRules
from services.frontend.routing.slow_start import SlowStart


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRules:
    """Reachability, ejection of workers that fail, slow start of fresh ones, and of which tiers blocks are watched."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    ejection: EjectionRules = field(default_factory=EjectionRules)
    slow_start: SlowStart = field(default_factory=SlowStart)
    watched_tiers: frozenset[Tier] = frozenset()
