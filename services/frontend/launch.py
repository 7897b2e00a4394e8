"""Sends requests out over routes: picks one, opens its legs, and tries a second one where the first token is late."""

import asyncio
import contextlib
import dataclasses
import random
import secrets
import time
from collections.abc import AsyncGenerator

from services.common.errors import BatonError, NoWorker
from services.frontend.fallback import fallback_of
from services.frontend.hedge import HEDGED_SHARE, leader
from services.frontend.legs import Legs
from services.frontend.parts import Parts
from services.frontend.race import Race
from services.frontend.router import Route
from services.frontend.rules import Rules


class Launch:
    """Starts the legs of all requests of a frontend and sees to their end; holds no state of its own."""

    def __init__(self, parts: Parts, rules: Rules) -> None:
        self._parts = parts
        self._rules = rules

    async def next_route(self, race: Race) -> Route:
        """Picks a route; waits a little before one whose workers have all failed this request already.

        Raises:
            BatonError: nobody can serve the request, or not within its time.
        """
        route = self._pick(race)
        pause_s = race.recovery.pause_s(
            route,
            left_s=race.work.deadline - time.monotonic(),
            least_s=self._parts.first_token_times.fastest(race.known_tokens),
            jitter=random.random(),
        )
        if not pause_s:
            return route
        await asyncio.sleep(pause_s)
        return self._pick(race)

    @contextlib.asynccontextmanager
    async def legs(self, race: Race, route: Route) -> AsyncGenerator[Legs, None]:
        """The legs over a route, or over a second one that was quicker; stops all of them at the end.

        `route` was picked in the same step of the loop.
        """
        opened = [self._open(race, route)]
        try:
            legs = await leader(
                opened[0], lambda: self._hedge(race, opened), self._patience_s(race), self._parts.releases
            )
            if len(opened) > 1:
                self._parts.metrics.hedged("lost" if legs is opened[0] else "won")
            yield legs
        finally:
            for each in opened:
                each.stop(self._parts.releases)
            for each in opened:
                await each.stopped()

    def _pick(self, race: Race) -> Route:
        try:
            return self._parts.router.pick(race.need(), self._parts.members.snapshot())
        except NoWorker as error:
            raise race.recovery.no_route(error) from error

    def _open(self, race: Race, route: Route) -> Legs:
        """Starts the legs of a route, with a ticket of their own."""
        fallback = fallback_of(route, self._parts.members.snapshot(), is_begun=race.merge.has_begun)
        self._parts.metrics.routed(route.kind, fallback, route.shortcut)
        prefill = self._parts.members.member(route.prefill) if route.prefill else None
        decode = self._parts.members.member(route.decode) if route.decode else None
        ticket_id = secrets.token_hex(16) if route.kind == "split" else ""
        work = dataclasses.replace(race.work, ticket_id=ticket_id, emitted=race.emitted)
        legs = Legs(work, (prefill, decode), race.merge, race.record, self._rules, route.cached)
        legs.fallback, legs.shortcut = fallback, route.shortcut
        return legs

    def _patience_s(self, race: Race) -> float | None:
        """How long the first token may take before a second route is tried; None where none is."""
        if not self._rules.hedge_factor or race.merge.has_begun:
            return None
        usual_s = self._parts.first_token_times.quantile(len(race.work.token_ids), HEDGED_SHARE)
        return None if usual_s is None else usual_s * self._rules.hedge_factor

    def _hedge(self, race: Race, opened: list[Legs]) -> Legs | None:
        """Opens a second route, if another worker could run the prompt and the retry budget pays for it."""
        (first,) = opened
        avoided = frozenset(race.recovery.avoided | first.worker_ids)
        need = dataclasses.replace(race.need(), avoided=avoided, model=race.model)
        try:
            route = self._parts.router.pick(need, self._parts.members.snapshot())
        except BatonError:
            return None  # nobody is left; the first route may still come through
        runner = route.prefill or route.decode
        if runner is None or runner.worker.worker_id in first.worker_ids:
            return None
        if not self._parts.budget.take(time.monotonic()):
            return None
        race.is_hedged = True
        opened.append(self._open(race, route))
        return opened[-1]
