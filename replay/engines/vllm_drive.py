"""One trial on a running vLLM engine: inputs before the steps where they belong, and what the hooks then saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.case import Asked
from replay.coverage import plain
from replay.departure import departure
from replay.engines import vllm_kept
from replay.engines.vllm_setup import Evidence, Setup
from replay.factors import Unpinnable
from replay.stand_in import draw
from replay.trial import Trace

if TYPE_CHECKING:
    from replay.case import Case, Composition
    from replay.company import Added, Company, Input
    from replay.engines.vllm_kept import Kept
    from replay.engines.vllm_live import Live
    from replay.stand_in import StandIn

    Schedule = dict[int, Composition]

OWN = "forensics-added-"
"""How the ids of requests begin that nobody sent."""


class Drive:
    """One trial: inputs before the steps where they belong, one step after the other, up to the last token wanted."""

    def __init__(
        self, live: Live, given: Company, said: dict[str, StandIn], record: tuple[int, Schedule], settings: list[str],
        added: Added | None = None,
    ) -> None:  # fmt: skip
        self.live, self.notes, self.given, self.said = live, live.notes, given, said
        self._added = self._to_add = added
        (self.arrival, self.schedule), self.settings = record, settings
        self.origin = given.origin
        self.compared = 0
        self.departed: str | None = None
        self._put: Kept | None = None
        self._arrived: set[str] = set()

    def until(self, tokens: int, kept: Kept | None = None) -> str | None:
        """Step until the target has so many tokens, has ended, or left the record; return why it gave nothing.

        kept: keys and values to put in before the pass that follows its tokens.
        """
        pending = list(self.given.inputs)
        scheduler = self.live.scheduler
        idle = 0
        while self.departed is None:
            step = self.live.observer.engine_step + self.origin
            while pending and pending[0].step <= step:
                self._take(pending.pop(0))
            self._add()
            if not scheduler.has_unfinished_requests():
                if self.given.target in self._arrived:
                    return None
                self.live.observer.engine_step = pending[0].step - self.origin  # nobody is there until then
                continue
            if kept is not None and len(self.notes.tokens(self.given.target)) == len(kept.tokens):
                vllm_kept.put(self.live, self.given.target, kept)
                self._put, kept = kept, None
            _, ran = self.live.core.step()
            idle = 0 if ran else idle + 1
            if ran:
                self._compare()
                self._check_put()
            elif idle > 1:  # a step without rows only tells the runner who has left
                return f"the engine scheduled nothing at step {step} after the request's arrival"
            if len(self.notes.tokens(self.given.target)) >= tokens or self._ended():
                return None
        return None

    def _add(self) -> None:
        """Admit what is to be added, before the pass whose launch it is to share."""
        one, passes = self._to_add, len(self.notes.tokens(self.given.target))
        if one is None or self.given.target not in self._arrived or passes < (one.at or 0):
            return
        self._to_add = None
        room = self.live.config.model_config.max_model_len - one.tokens
        answer = room if one.at is None else 1
        if answer < 1:
            raise Unpinnable(f"company.added={one}: longer than the model's context")
        for name in (f"{OWN}{at}" for at in range(one.rows)):
            asked = Asked(name, 0, one.tokens, {"max_tokens": answer})
            self.live.admit(asked, draw(name, one.tokens, self.live.vocabulary), by_length=True)

    def _check_put(self) -> None:
        """Look whether the pass that followed went on from what was put in. Raises Unpinnable where it did not."""
        if self._put is None or len(passes := self.notes.tokens(self.given.target)) <= (
            number := len(self._put.tokens)
        ):
            return
        if passes[number]["num_computed_tokens"] != self._put.computed:
            raise Unpinnable(f"history: the request was preempted before pass {number} and computed again")
        self._put = None

    def _ended(self) -> bool:
        return self.given.target in self._arrived and self.given.target not in self.live.scheduler.requests

    def _take(self, one: Input) -> None:
        if one.order is not None:
            self.live.order(one.order)
            return
        asked = one.asked
        assert asked is not None  # an input is one of the two
        self._arrived.add(asked.req_id)
        if asked.req_id == self.given.target:
            self.live.admit(asked, asked.token_ids or ())
        elif stand_in := self.said.get(asked.req_id):
            self.live.admit(asked, stand_in.token_ids, forced=stand_in.forced, by_length=True)
        else:
            self.live.admit(asked, asked.token_ids or (), by_length=not plain(asked.decode_cfg))

    def _compare(self) -> None:
        step = self.notes.last
        then, here = self.schedule.get(step + self.origin), self.notes.composition(step)
        if then is None:
            return
        if then == here:
            self.compared += 1
        else:
            self.departed = departure(self.arrival + self.origin + step, then, here, self._arrived, self.settings)

    def kept(self) -> Kept:
        """Return the target's keys and values as they are now. Raises Unpinnable where it has none any more."""
        if self._ended():
            raise Unpinnable("history: the run ended before the pass that was asked for")
        return vllm_kept.take(self.live, self.given.target)

    def evidence(self, case: Case, setup: Setup) -> Evidence:
        """Return what was seen, for the factors to be read back from."""
        notes, live = self.notes, self.live
        arrivals = [one for one in notes.requests if "arrival_step" in one and not one["req_id"].startswith(OWN)]
        launches = [notes.composition(one["engine_step"]) for one in notes.tokens(self.given.target)]
        rows = list(notes.steps.values())
        return Evidence(
            case=case, company=self.given, requests=setup.requests, orders=setup.orders, added=self._added,
            beside=[tuple(row[1] for row in launch if row[0].startswith(OWN)) for launch in launches],
            arrived=[(one["req_id"], one["arrival_step"], one["effective_tokens"], one["effective_token_ids_sha256"])
                     for one in arrivals],
            ordered=[(one["what"], one["engine_step"]) for one in notes.events
                     if one["what"] in ("prefix_cache_reset", "batch_limit_change")],
            last_step=notes.last + self.origin, origin=self.origin, limits=live.limits,
            launch_tokens=max((sum(one["num_scheduled_tokens"] for one in step) for step in rows), default=0),
            rows=max(map(len, rows), default=0),
            kv_blocks=live.pool.num_gpu_blocks, caching=bool(live.pool.enable_caching),
            cached_tokens=sum(one.get("num_cached_tokens") or 0 for step in rows for one in step),
            hidden_dtype=live.hidden_dtype, built=live.built(),
        )  # fmt: skip

    def trace(self, plan: dict[str, str], observed: dict[str, str], fault: str | None) -> Trace:
        """Return the target's tokens and logits."""
        got = self.notes.tokens(self.given.target)
        faults = self.notes.faults()
        failed = fault or (f"logits could not be read: {faults[0]}" if faults else None)
        last = self.notes.composition(self.notes.last) if self.notes.last >= 0 else ()
        return Trace(
            plan=plan,
            tokens=tuple(one["token_id"] for one in got),
            logits_sha256=tuple(one["logits_sha256"] for one in got),
            top_token_ids=tuple(tuple(one["top_token_ids"]) for one in got),
            top_logits=tuple(tuple(one["top_logits"]) for one in got),
            observed=observed,
            failed=failed,
            departure=self.departed,
            details={
                "engine_steps": self.notes.last + 1,
                "steps_as_recorded": self.compared,
                "requests": len(self._arrived),
                "rows": len(last),
                "launch_tokens": sum(row[1] for row in last),
                "preemptions": sum(one["what"] == "preemption" for one in self.notes.events),
                "own_preemptions": sum(
                    one["what"] == "preemption" and one.get("req_id") == self.given.target for one in self.notes.events
                ),
                "logit_dtype": got[-1]["logit_dtype"] if got else None,
                "settings_otherwise": self.settings,
            },
        )
