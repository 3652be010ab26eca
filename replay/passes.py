"""The fewest passes that still carry the difference, and the size of launch at which their bits change.

The request runs as in one arm in a stretch of passes and as in the other before and after it: keys and values go along
from run to run. Both ends are found by halving. Then its first pass runs among stand-ins in the company's place, rows
and launch tokens each by themselves, as few as still give the same bits at the flip. Standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.company import ADDED, ALONE, REQUESTS, Added
from replay.exchange import pin_not_taken
from replay.trial import Treatment

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.case import Arm, Composition
    from replay.trial import Trace
    from replay.verdict import Found, History
    from replay.workbench import Bench

MOST, SPARED = 32, 6
"""Trials that the search may take, and those that the rest of the proof still needs."""


@dataclass(frozen=True)
class Stretch:
    """Passes `first` to `last` as in one arm, the others as in the other arm: enough for what the arm gave at the flip.

    Pass 0 is the prompt's; with one pass less at either end it is not enough. engine_steps: those of the two passes in
    the arm's run, () where nobody recorded them. carry: enough for the arm's 'bits', its logits, or its 'token' only.
    """

    first: int
    last: int
    engine_steps: tuple[int, ...]
    carry: str


@dataclass(frozen=True)
class Border:
    """The size of launch at which a pass changes, tried with stand-ins in the company's place in this one pass.

    at: the pass; rows, launch_tokens: of the launch that it had in company. fewest_rows: the fewest stand-ins of one
    token each that give the same logits of the flip, bit for bit, as the company in this pass does; fewest_tokens: the
    shortest single stand-in that does; None: none up to the company's own size does, or `detail` says why it is open.
    """

    at: int
    rows: int
    launch_tokens: int
    fewest_rows: int | None
    fewest_tokens: int | None
    detail: str


@dataclass(frozen=True)
class Passes:
    """In which passes up to the flip the difference arises. arm: whose passes; of: how many there are.

    stretches: the shortest that carries the bits, and the shortest that carries the token where that is shorter.
    border: of the first pass of the last stretch, None where the other arm's launch had as many rows.
    """

    arm: str
    of: int
    stretches: tuple[Stretch, ...]
    border: Border | None
    detail: str


class _Unknown(Exception):  # noqa: N818 - what happened, not a fault
    """A trial gave nothing to compare; the message says why."""


def fewest_passes(bench: Bench, found: Found, history: History) -> Passes | None:
    """Return the shortest stretch, None where no proof stands or keys and values cannot be moved."""
    if found.outcome != "proven" or bench.case.incident.window is None or history.carried_by == "open":
        return None
    others = bench.plans()[0].get(REQUESTS), bench.plans()[1].get(REQUESTS)
    name = "reference" if others[0] == ALONE != others[1] else "incident"
    with bench.within(MOST, SPARED):
        return _Search(bench, name, history).judged()


class _Search:
    """Passes of one arm, put into the other's run. own, launches: of the first; theirs, beside: of the other."""

    def __init__(self, bench: Bench, name: str, history: History) -> None:
        self.bench, self.name, self.flip = bench, name, bench.count - 1
        self.own, self.theirs = bench.plans() if name == "incident" else bench.plans()[::-1]
        self.gave = bench.arms[name != "incident"]
        self.launches = launches(bench.case.arm(name))
        self.beside = launches(bench.case.arm("reference" if name == "incident" else "incident"))
        self.known = history.first_pass if name == "incident" else None

    def judged(self) -> Passes:
        stretches, why = [], ""
        try:
            stretches.append(self._shortest("bits", self._last(self.flip, self._bits), self._bits))
            last = self._last(stretches[0].last, self._token) if self.known is None else self.known
            stretches.append(self._shortest("token", last, self._token))
        except _Unknown as unknown:
            why = f"a shorter stretch is not ruled out: {unknown}"
        spans = [one.last - one.first for one in stretches]
        if len(spans) > 1 and spans[0] <= spans[1]:
            stretches.pop()
        border = self._border(stretches[-1]) if stretches else None
        return Passes(self.name, self.flip + 1, tuple(stretches), border, why)

    def _last(self, end: int, carries: Callable[[Trace], bool]) -> int:
        """Return the least pass up to which the arm's carry; they do up to `end`. Raises _Unknown."""
        return _least(-1, end, lambda last: carries(self._ran(0, last)))

    def _shortest(self, carry: str, last: int, carries: Callable[[Trace], bool]) -> Stretch:
        """Return the shortest stretch that carries and ends with `last`; from pass 0 on it does. Raises _Unknown."""
        first = last - _least(-1, last, lambda length: carries(self._ran(last - length, last)))
        steps = tuple(self.launches[one][0] for one in (first, last) if one in self.launches)
        return Stretch(first, last, steps if len(steps) == 2 else (), carry)

    def _bits(self, trace: Trace) -> bool:
        return self._same_flip(trace, self.gave)

    def _token(self, trace: Trace) -> bool:
        return trace.same_tokens(self.gave, self.bench.count)

    def _same_flip(self, trace: Trace, other: Trace) -> bool:
        """Return whether the flip's logits are the same, bit for bit, and the tokens up to it."""
        mine, theirs = (one.logits_sha256[self.flip : self.bench.count] for one in (trace, other))
        return len(mine) == 1 and mine == theirs and trace.same_tokens(other, self.bench.count)

    def _ran(self, first: int, last: int, added: Added | None = None) -> Trace:
        """Run these passes as in the arm, the rest as in the other with `added` beside it. Raises _Unknown."""
        rest = self.theirs | ({ADDED: str(added)} if added else {})
        if (first, last) == (0, self.flip):
            treatment = Treatment(self.own)
        elif first > last:
            treatment = Treatment(rest)
        elif last == self.flip:
            treatment = Treatment(self.own, rest, first)
        else:
            treatment = Treatment(rest, self.own, last + 1, since=first)
        what = f"{first} to {last} of the {self.name}" if first <= last else f"none of the {self.name}"
        trace = self.bench.trial(f"passes: {what}{f', {added} beside the rest' if added else ''}", treatment)
        if problem := trace.missing or pin_not_taken(trace):
            raise _Unknown(problem)
        return trace

    def _border(self, stretch: Stretch) -> Border | None:
        """Return the size of launch at which the first pass of a stretch changes."""
        at = stretch.first
        if at not in self.launches:
            return None
        _, rows, tokens, own = self.launches[at]
        alone = (0, 1, own, own) if self.theirs.get(REQUESTS) == ALONE else None
        if (other := self.beside.get(at, alone)) is None or rows <= other[1]:
            return None
        fewest: list[int | None] = []
        detail = ""
        try:
            company = self._ran(at, stretch.last)
            for most, size in ((rows - other[1], _rows), (tokens - other[2], _tokens)):
                fewest.append(self._fewest(stretch, company, most, size))
        except _Unknown as unknown:
            detail = f"smaller ones could not be tried: {unknown}"
        fewest += [None, None]
        return Border(at, rows, tokens, fewest[0], fewest[1], detail)

    def _fewest(self, stretch: Stretch, company: Trace, most: int, size: Callable[[int, int], Added]) -> int | None:
        """Return the least stand-ins that do in the first pass what the company does; None: `most` does not."""

        def same(count: int) -> bool:
            return self._same_flip(self._ran(stretch.first + 1, stretch.last, size(count, stretch.first)), company)

        return _least(0, most, same) if most > 0 and same(most) else None


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the least number above `low` for which it holds, by halving; it holds for `high`, not for `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _rows(count: int, at: int) -> Added:
    return Added(count, 1, at)


def _tokens(count: int, at: int) -> Added:
    return Added(1, count, at)


def launches(arm: Arm) -> dict[int, tuple[int, int, int, int]]:
    """Return pass → (engine step, rows, launch tokens, the request's own tokens) of the launches that chose tokens."""
    found: dict[int, tuple[int, int, int, int]] = {}
    window = arm.window
    if window is None:
        return found
    length = next(one.tokens for one in window.requests if one.req_id == arm.req_id)
    for step, rows in window.schedule:
        for req_id, scheduled, computed in rows:
            if req_id == arm.req_id and computed + scheduled == length + len(found):
                found[len(found)] = (step, len(rows), _size(rows), scheduled)
    return found


def _size(rows: Composition) -> int:
    return sum(scheduled for _, scheduled, _ in rows)
