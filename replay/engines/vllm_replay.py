"""Run a request again on stock vLLM, with its company, step by step as on record; the child of replay/children.py.

The engine is built in this process from the recorded configuration and driven by hand. What is compared with the record
is what the recorder's hooks saw, never what was asked for.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay.company import Company, company, recorded
from replay.engines.child import answer
from replay.engines.vllm_drive import Drive
from replay.engines.vllm_live import Live
from replay.engines.vllm_rebuild import arguments, device, otherwise
from replay.engines.vllm_setup import Setup
from replay.engines.vllm_worker import HASH_LOGITS
from replay.exchange import pin_not_taken
from replay.factors import Unpinnable, factor
from replay.stand_in import StandIn, stand_ins
from replay.trial import Trace, Treatment

if TYPE_CHECKING:
    from replay.case import Case, Plan
    from replay.engines.vllm_kept import Kept


MOST_KEPT = 3
"""Histories that stay in memory: both arms', and one that was mixed from them."""
Base = tuple["Plan", int]
"""A plan, and the pass before which the keys and values of a run under it are put into another run."""


@dataclass(frozen=True)
class History:
    """Keys and values of a run, to be used again. base: whose were put into it; settled: none was computed twice."""

    case: Case
    plan: Plan
    base: Base | None
    kept: Kept
    settled: bool

    def covers(self, switch: int) -> bool:
        """Return whether it tells what the request had before this pass."""
        known, since = len(self.kept.tokens), self.base[1] if self.base else 0
        return known == switch or (self.settled and since < switch < known)


class Engine:
    """Live engines of one model, one at a time: a plan with other settings builds another one.

    case: whose request runs. live: the engine of the last trial, whose notes hold what all requests of that trial got.
    """

    case: Case

    def __init__(self, model_path: str) -> None:
        self.model_path = model_path
        self.live: Live | None = None
        self._given: dict[str, Any] = {}
        self._histories: list[History] = []

    def run(self, treatment: Treatment) -> Trace:
        """Return what the treatment gives, or a refused trace."""
        plan, base = treatment.plan, (treatment.plan, treatment.since) if treatment.since else None
        try:
            kept = None if treatment.history is None else self._kept(treatment.history, treatment.switch, base)
            return self._run(plan, self.case.horizon(), kept)[0]
        except Unpinnable as reason:
            return Trace(plan, refused=str(reason))

    def _kept(self, plan: Plan, switch: int, base: Base | None) -> Kept:
        """Return what a run under the plan has before a pass; a longer run that is kept serves as well."""
        for one in self._histories:
            if one.case is self.case and (one.plan, one.base) == (plan, base) and one.covers(switch):
                return one.kept.earlier(switch)
        trace, drive = self._run(plan, switch, self._kept(*base, None) if base else None)
        if problem := trace.missing or trace.departure or pin_not_taken(trace):
            raise Unpinnable(f"history: {problem}")
        made = History(self.case, plan, base, drive.kept(), settled=not trace.details["own_preemptions"])
        self._histories = [made, *self._histories][:MOST_KEPT]
        return made.kept

    def _run(self, plan: Plan, tokens: int, put: Kept | None) -> tuple[Trace, Drive]:
        """Return what the plan gives up to so many tokens, and the drive that did it. put: goes in on the way."""
        setup = Setup(self.case, device=device())
        with ExitStack() as stack:
            parts: dict[str, Any] = {name: factor(name, "vllm") for name in sorted(plan)}
            for name, part in parts.items():
                stack.enter_context(part.pin(plan[name], setup))
            live = self._live_for(arguments(self.case.engine, self.model_path) | setup.settings)
            live.empty()
            given = company(self.case, setup.requests, setup.orders)
            settings = otherwise(self.case.engine, live.config, setup.settings)
            said = self._said(live, given, setup.contents)
            drive = Drive(live, given, said, recorded(self.case, plan, given.target), settings, setup.added)
            fault = drive.until(tokens, put)
            evidence = drive.evidence(self.case, setup)
            seen = {name: part.observe(evidence) for name, part in parts.items()}
            trace = drive.trace(plan, {name: value for name, value in seen.items() if value is not None}, fault)
            return trace, drive

    def _live_for(self, given: dict[str, Any]) -> Live:
        if self.live is None or given != self._given:
            if self.live is not None:
                self.live.shutdown()
                self.live = None
            self.live, self._given = Live(given, self.model_path), given
        return self.live

    def _said(self, live: Live, given: Company, contents: str) -> dict[str, StandIn]:
        """Return ids for all others, or for those that need none {}: theirs are on record."""
        requests = [asked for _, asked in given.requests()]
        if contents == "random":
            hits = {**_hits(self.case, "incident"), **_hits(self.case, "reference")}
            return stand_ins(requests, given.target, live.scheduler.block_size, live.vocabulary, hits)
        if bare := [one.req_id for one in requests if one.token_ids is None]:
            raise Unpinnable(f"company.contents=recorded: the ids of {bare[0]} are not on record")
        return {}


def _hits(case: Case, name: str) -> dict[str, int]:
    """Return how much of each request was found in the prefix cache when it first ran."""
    window = case.arm(name).window
    found: dict[str, int] = {}
    for _, rows in window.schedule if window else ():
        for req_id, _scheduled, computed in rows:
            found.setdefault(req_id, computed)
    return found


def main() -> int:
    """Answer as the child of a proof."""
    os.environ[HASH_LOGITS] = "1"
    return answer(Engine)


if __name__ == "__main__":
    sys.exit(main())
