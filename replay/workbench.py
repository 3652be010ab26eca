"""The bench on which a case is tried: runs treatments, keeps what ran, compares it with both arms. No judgement."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from replay.exchange import FOLLOWS, NOT_NEEDED, Swap, exchange, pin_not_taken
from replay.trial import Trace, Treatment, shared_start
from replay.verdict import Ran

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from replay.case import Case, Plan
    from replay.trial import Run

MAX_TRIALS = 64
SPENT = f"the budget of {MAX_TRIALS} trials is spent"
Arms = tuple["Plan", "Plan"]
Until = Literal["both", "failed", "unproven"]
"""How far an exchange is run: both ways to the flip, until one way has failed, or until it cannot be proven."""


@dataclass(frozen=True)
class Done:
    """A trial under the name of its part in the proof; parts that share an execution share its number."""

    name: str
    treatment: Treatment
    trace: Trace
    execution: int


class Bench:
    """Runs trials of one case. `incident`, `reference` and `count` are set once the controls have passed.

    jobs: how many trials `run` may be asked for at once. It changes the time of a proof and nothing else.
    """

    def __init__(self, case: Case, run: Run, say: Callable[[str], None] = lambda _line: None, *, jobs: int = 1) -> None:
        self.case, self._run, self.say, self._jobs = case, run, say, jobs
        self.done: list[Done] = []
        self.executed, self.seconds = 0, 0.0
        self.limit = MAX_TRIALS
        self.count = 0
        self.incident: Trace | None = None
        self.reference: Trace | None = None
        self._known: dict[str, Done] = {}

    @property
    def arms(self) -> tuple[Trace, Trace]:
        """Return what the incident's and the reference's plan gave."""
        assert self.incident
        assert self.reference
        return self.incident, self.reference

    @property
    def left(self) -> int:
        """Return how many trials the budget still holds."""
        return max(self.limit - self.executed, 0)

    def trial(self, name: str, treatment: Treatment | Plan) -> Trace:
        """Execute a treatment under a name, or remember it where it has run. Beyond the budget nothing runs."""
        wanted = treatment if isinstance(treatment, Treatment) else Treatment(treatment)
        known = self._remembered(wanted)
        if known is None and self.executed >= self.limit:
            return Trace(wanted.plan, failed=SPENT)
        if known is None:
            known = self._execute(name, wanted, self._number(name))
        self.done.append(replace(known, name=name))
        return known.trace

    def ahead(self, wanted: Iterable[tuple[str, Treatment]]) -> None:
        """Run trials side by side that will all be asked for by these names, so that asking finds them done."""
        if self._jobs == 1:
            return
        new: dict[str, tuple[str, Treatment]] = {}
        for name, one in wanted:
            if self._remembered(one) is None:
                new.setdefault(one.key(), (name, one))
        chosen = list(new.values())[: max(self.limit - self.executed, 0)]
        pool = ThreadPoolExecutor(self._jobs)
        try:
            running = [pool.submit(self._execute, name, one, self._number(name)) for name, one in chosen]
            for trial in running:
                trial.result()
        finally:  # after a fault or Ctrl-C nothing waits for the others: whoever owns the processes ends them
            pool.shutdown(wait=False, cancel_futures=True)

    def _remembered(self, wanted: Treatment) -> Done | None:
        return self._known.get(replace(wanted, must_give=()).key()) or self._known.get(wanted.key())

    def _number(self, name: str) -> int:
        self.executed += 1
        self.say(f"trial {self.executed}: {name}")
        return self.executed

    def _execute(self, name: str, wanted: Treatment, number: int) -> Done:
        started = time.monotonic()
        trace = self._run(self.case, wanted)
        self.seconds += time.monotonic() - started
        if trace.missing:
            self.say(f"trial {number} gave nothing: {trace.missing}")
        done = Done(name, wanted, trace, number)
        self._known[(wanted if trace.stopped else replace(wanted, must_give=())).key()] = done
        return done

    @contextmanager
    def within(self, trials: int, spared: int = 0) -> Iterator[None]:
        """Let no more than so many trials run in the block, and leave so many of the budget."""
        limit = self.limit
        self.limit = min(limit - spared, self.executed + trials)
        try:
            yield
        finally:
            self.limit = limit

    def known(self, plan: Plan) -> Trace | None:
        """Return what a plan gave if it has run, without running it."""
        found = self._known.get(Treatment(plan).key())
        return found.trace if found else None

    def settle(self, incident: Trace, reference: Trace) -> bool:
        """Take the two arms; return whether their tokens differ. From here on trials end at the flip."""
        self.incident, self.reference = incident, reference
        shared = shared_start(incident.tokens, reference.tokens)
        shorter = min(len(incident.tokens), len(reference.tokens))
        self.count = min(shared + 1, shorter)
        if shared < shorter:
            arms = [replace(arm, output_token_ids=trace.tokens) for arm, trace in
                    ((self.case.incident, incident), (self.case.reference, reference))]  # fmt: skip
            self.case = replace(self.case, flip_index=shared, incident=arms[0], reference=arms[1])
        return shared < shorter

    def hold(self, incident: Plan, reference: Plan) -> None:
        """From here on force what follows from the arms' plans too: these plans take the place of the recorded ones."""
        held = replace(self.case.incident, plan=incident), replace(self.case.reference, plan=reference)
        self.case = replace(self.case, incident=held[0], reference=held[1])

    def factors(self) -> tuple[str, ...]:
        """Return the factors that differ on record, without those that follow another one."""
        differing = self.case.differing_factors()
        return tuple(name for name in sorted(differing) if FOLLOWS.get(name) not in differing)

    def plans(self) -> Arms:
        """Return both arms' plans as recorded."""
        return self.case.incident.plan, self.case.reference.plan

    def swap(self, names: Sequence[str], arms: Arms | None = None, *, until: Until = "both", note: str = "") -> Swap:
        """Run both exchanges of a set; or, the smaller launch first, until one has failed or the set is not proven.

        arms: plans to exchange between, default those on record; note: what is special about them.
        """
        found: dict[str, Trace] = {}
        settled = False
        for half, name, treatment in self._halves(names, arms, until, note):
            found[half] = trace = Trace(treatment.plan, failed=NOT_NEEDED) if settled else self.trial(name, treatment)
            arm = self.arms[half == "restored"]
            ran = trace.missing is None and pin_not_taken(trace) is None
            gave = ran and trace.same_bits(arm, self.count)
            settled = (until == "failed" and ran and not gave) or (until == "unproven" and not gave)
        return self._compare(tuple(names), found["restored"], found["induced"])

    def swaps(self, sets: Sequence[tuple[str, ...]]) -> list[Swap]:
        """Run both exchanges of every set."""
        self.ahead((name, treatment) for names in sets for _, name, treatment in self._halves(names))
        return [self.swap(names) for names in sets]

    def _halves(
        self, names: Sequence[str], arms: Arms | None = None, until: Until = "both", note: str = ""
    ) -> list[tuple[str, str, Treatment]]:
        """Return which half, its name and its treatment, in the order in which they run."""
        incident, reference = arms or self.plans()
        text = ", ".join(names)
        halves = [
            ("restored", f"incident with {text} of the reference{note}", exchange(incident, reference, names)),
            ("induced", f"reference with {text} of the incident{note}", exchange(reference, incident, names)),
        ]
        if until != "both":
            halves.sort(key=lambda half: self._launch_tokens(half[2]))
        hashes = {
            half: () if until == "both" else self.arms[half == "restored"].logits_sha256[: self.count]
            for half, _, _ in halves
        }
        return [(half, f"{half}: {what}", Treatment(plan, must_give=hashes[half])) for half, what, plan in halves]

    def _launch_tokens(self, plan: Plan) -> int:
        padding = sum(int(plan.get(name, 0)) for name in ("batch.left_pad", "batch.right_pad"))
        return int(plan.get("batch.rows", 1)) * (len(self.case.token_ids) + padding)

    def _compare(self, names: tuple[str, ...], restored: Trace, induced: Trace) -> Swap:
        incident, reference = self.arms
        back, forth = restored.same_tokens(reference, self.count), induced.same_tokens(incident, self.count)
        return Swap(
            names,
            restored,
            induced,
            back and restored.same_bits(reference, self.count),
            forth and induced.same_bits(incident, self.count),
            back,
            forth,
        )

    def filed(self) -> tuple[Ran, ...]:
        """Return all trials as the verdict files them."""
        return tuple(self._filed(one) for one in self.done)

    def _filed(self, one: Done) -> Ran:
        trace, treatment = one.trace, one.treatment
        known = (
            (trace.missing, trace.stopped) == (None, None)
            and trace.tokens
            and self.incident is not None
            and self.reference is not None
            and self.count
        )
        return Ran(
            name=one.name,
            execution=one.execution,
            plan=trace.plan,
            history=treatment.history,
            switch=treatment.switch if treatment.history is not None else None,
            since=treatment.since if treatment.history is not None else None,
            observed=trace.observed,
            details=trace.details,
            tokens=trace.tokens,
            logits_sha256=trace.logits_sha256,
            tokens_equal=self._equals(trace, Trace.same_tokens) if known else None,
            bits_equal=self._equals(trace, Trace.same_bits) if known else None,
            stopped=trace.stopped,
            contrast=trace.contrast,
            refused=trace.refused,
            failed=trace.failed,
        )

    def _equals(self, trace: Trace, same: Callable[[Trace, Trace, int], bool]) -> str:
        incident, reference = self.arms
        pair = same(trace, incident, self.count), same(trace, reference, self.count)
        return {(True, True): "both", (True, False): "incident", (False, True): "reference"}.get(pair, "neither")
