"""Which of the others carry the difference, and whether it matters what they say.

Halves of the requests around the target are dropped as long as the rest carries it, by bits; where all are needed for
these, by the token. Then the other direction: only these are taken away. Standard library.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from replay.company import ALONE, CONTENTS, REQUESTS, subset
from replay.exchange import pin_not_taken
from replay.search import reduce_set
from replay.verdict import Neighbours

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.case import Arm, Window
    from replay.exchange import Status
    from replay.trial import Trace
    from replay.verdict import Found
    from replay.workbench import Bench

MOST = 24
"""Trials that the search for the fewest may take."""


def neighbours(bench: Bench, found: Found) -> Neighbours | None:
    """Return who carries the difference, None where it is not proven to be the company of either arm."""
    if found.outcome != "proven" or REQUESTS not in found.names:
        return None
    name = "incident" if bench.plans()[0].get(REQUESTS) != ALONE else "reference"
    arm = bench.case.arm(name)
    if arm.window is None:
        return None
    return _Crowd(bench, name, arm, arm.window).judged()


class _Crowd:
    """The company of one arm: `own` is what the arm gave, `theirs` what the other did."""

    def __init__(self, bench: Bench, name: str, arm: Arm, window: Window) -> None:
        self.bench, self.name, self.arm, self.window = bench, name, arm, window
        self.own, self.theirs = bench.arms if name == "incident" else bench.arms[::-1]
        shared = _shared_steps(arm, window)
        ids = {at: window.requests[at].req_id for at in window.others(arm.req_id)}
        self.others = tuple(sorted(ids, key=lambda at: (shared[ids[at]], at)))  # who shared least is dropped first

    def judged(self) -> Neighbours:
        with self.bench.within(MOST):
            few, carry, minimal = self._fewest()
        rest = tuple(at for at in self.others if at not in few)
        without = self._trial(rest, f"without the {len(few)} that carry it")
        contents, matters = self._contents()
        return Neighbours(
            arm=self.name,
            of=len(self.others),
            fewest=tuple(self.window.requests[at].req_id for at in sorted(few)),
            carry=carry,
            minimal=minimal,
            removed=self._whose(without),
            contents=contents,
            contents_matter=matters,
            detail=self._detail(few, without),
        )

    def _fewest(self) -> tuple[tuple[int, ...], str, bool]:
        few, minimal = self._reduced(lambda trace: trace.same_bits(self.own, self.bench.count))
        if len(few) < len(self.others) or len(few) == 1:
            return few, "bits", minimal
        by_token, least = self._reduced(lambda trace: trace.same_tokens(self.own, self.bench.count))
        return (by_token, "token", least) if len(by_token) < len(few) else (few, "bits", minimal)

    def _reduced(self, carries: Callable[[Trace], bool]) -> tuple[tuple[int, ...], bool]:
        """Return a smallest set that carries, and whether every single removal was tried and does not."""
        unknown: list[tuple[str, ...]] = []

        def test(names: tuple[str, ...]) -> Status:
            trace = self._trial(tuple(map(int, names)), f"only {len(names)} of {len(self.others)}")
            if trace.missing or pin_not_taken(trace):
                unknown.append(names)
                return "open"
            return "proven" if carries(trace) else "failed"

        few = tuple(map(int, reduce_set(tuple(map(str, self.others)), test)))
        return few, not any(len(names) == len(few) - 1 and set(map(int, names)) < set(few) for names in unknown)

    def _trial(self, kept: tuple[int, ...], name: str) -> Trace:
        kept = tuple(sorted(kept))
        value = self.name if len(kept) == len(self.others) else subset(self.name, kept)
        return self.bench.trial(f"neighbours of the {self.name}: {name}", self.arm.plan | {REQUESTS: value})

    def _contents(self) -> tuple[str, bool | None]:
        if self.arm.plan.get(CONTENTS) == "random":
            return "random", None
        name = f"neighbours of the {self.name}: random ids of equal length"
        trace = self.bench.trial(name, self.arm.plan | {CONTENTS: "random"})
        if trace.missing or trace.departure or pin_not_taken(trace):
            return "recorded", None
        return "recorded", not trace.same_bits(self.own, self.bench.count)

    def _whose(self, trace: Trace) -> str | None:
        if trace.missing or pin_not_taken(trace):
            return None
        same = (trace.same_bits(self.own, self.bench.count), trace.same_bits(self.theirs, self.bench.count))
        other = "reference" if self.name == "incident" else "incident"
        return {(True, False): self.name, (False, True): other, (True, True): "both"}.get(same, "neither")

    def _detail(self, few: tuple[int, ...], without: Trace) -> str:
        only = self.bench.known(self.arm.plan | {REQUESTS: subset(self.name, tuple(sorted(few)))}) or self.own
        shapes = (
            ("all", self.own),
            (f"only {len(few)}", only),
            (f"all but {len(few)}", without),
            ("the other arm", self.theirs),
        )
        told = [f"{who}: {shape}" for who, trace in shapes if (shape := _shape(trace))]
        return f"rows and launch tokens of the step that chose the token: {', '.join(told)}" if told else ""


def _shape(trace: Trace) -> str:
    rows, tokens = trace.details.get("rows"), trace.details.get("launch_tokens")
    return f"{rows} and {tokens}" if rows and not trace.missing else ""


def _shared_steps(arm: Arm, window: Window) -> Counter[str]:
    """Return how many launches each request shared with the arm's own."""
    shared: Counter[str] = Counter()
    for _, rows in window.schedule:
        names = [row[0] for row in rows]
        if arm.req_id in names:
            shared.update(names)
    return shared
