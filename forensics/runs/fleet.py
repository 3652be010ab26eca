"""Who disagrees with its twins, since when, in which window, against whom, and what was different there.

Twins are runs of one effective request. The answer of a request is that which most runs gave, of equals that of the
calmest run (fewest tokens a launch); who gives another one disagrees. The unit that is counted is a *prompt in a cell*,
a cell being a replica in a window of time: the same prompt asked again in the same place is no new evidence, since an
idle server repeats itself bit for bit. So intervals (Wilson) take prompts as independent, and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from forensics.intervals import wilson
from forensics.runs.contrasts import FEWEST, Contrasted, conditions, contrasts, differing
from forensics.runs.twins import answers, cohorts, voices

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from forensics.runs.contrasts import Conditions
    from forensics.runs.twins import Twin
    from forensics.searching import Scope
    from forensics.store import Store
    from forensics.timeline import Thresholds

FORMAT = "forensics.fleet/1"
LENGTHS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 604800)
"""Lengths of a window in s; the least is chosen that covers the time in at most MOST_WINDOWS."""
MOST_WINDOWS = 12


class Windows(NamedTuple):
    """Windows of time. start: of the first, in Unix seconds; length: of each, in s."""

    start: float
    length: float

    def cell(self, one: Twin) -> tuple[str, int]:
        """Return (replica, window) of a run; without an arrival time it counts to the first window."""
        arrival = one.request["arrival_ts"]
        return one.identity[1], 0 if arrival is None else int((arrival - self.start) // self.length)


@dataclass(frozen=True)
class Held:
    """A run held against its twins. window: index; against: a calm run that gave the answer of most, maybe itself.

    odd: it gave another answer. tie_broken: as many places gave each.
    """

    x: str
    twin: Twin
    against: Twin
    window: int
    odd: bool
    tie_broken: bool

    @property
    def cell(self) -> tuple[str, int]:
        """Return (replica, window)."""
        return self.twin.identity[1], self.window


@dataclass(frozen=True)
class Odd:
    """A run that disagrees, and a calm one that it disagrees with, as commands take them. tie_broken: see `Held`."""

    request: str
    against: str
    replica: str
    window: int
    arrival_ts: float | None
    tie_broken: bool


@dataclass(frozen=True)
class Cell:
    """A replica in a window. prompts: that have a twin somewhere; odd: of them, those answered otherwise.

    low, high: 95 % interval of odd / prompts. against: {replica disagreed with: prompts}. rows: mean of the most rows
    in a launch of each run. regimes: {regime: share of the runs' steps}.
    """

    replica: str
    window: int
    begins: float
    ends: float
    prompts: int
    odd: int
    low: float
    high: float
    rows: float | None
    regimes: dict[str, float]
    against: dict[str, int]


@dataclass(frozen=True)
class Fleet:
    """requests: with at least two answered runs, `runs` in all. unanswered: twins whose answer is not on record."""

    requests: int
    runs: int
    unanswered: int
    window_s: float
    cells: tuple[Cell, ...]
    odd: tuple[Odd, ...]
    contrasts: tuple[Contrasted, ...]
    format: str = FORMAT

    def document(self) -> dict[str, Any]:
        """Return it for `--format json`."""
        return asdict(self)

    @property
    def exit_code(self) -> int:
        """Return 1 where someone disagrees, 4 where too few prompts have twins to say that nobody does, else 0."""
        if self.odd:
            return 1
        return 0 if self.requests >= FEWEST else 4


def fleet(store: Store, within: Scope, limits: Thresholds, window_s: float | None = None) -> Fleet:
    """Hold every run against its twins. within.replica: whose cells are told; its twins may be anywhere."""
    known = cohorts(store, within)
    spoken = {one.x: [twin for twin in one.twins if twin.answer is not None] for one in known}
    runs = [twin for twins in spoken.values() if len(twins) > 1 for twin in twins]
    windows = _windows([twin.request["arrival_ts"] or 0.0 for twin in runs], window_s)
    held = [one for x, twins in spoken.items() if len(twins) > 1 for one in _held(x, twins, windows)]
    lived = conditions(store, runs, limits)
    told = [one for one in held if within.replica in (None, one.twin.identity[1])]
    odd = sorted((one for one in told if one.odd), key=lambda one: one.twin.request["arrival_ts"] or 0.0)
    return Fleet(
        requests=len({one.x for one in held}), runs=len(runs),
        unanswered=sum(twin.answer is None for one in known for twin in one.twins),
        window_s=windows.length, cells=tuple(_cells(told, lived, windows)),
        odd=tuple(Odd(one.twin.name, one.against.name, *one.cell, one.twin.request["arrival_ts"], one.tie_broken)
                  for one in odd),
        contrasts=tuple(_contrasts(told, lived)),
    )  # fmt: skip


def _windows(times: list[float], asked: float | None) -> Windows:
    """Return windows on whole multiples of their length, so that two stores compare."""
    if not times:
        return Windows(0.0, asked or 1.0)
    first, last = min(times), max(times)
    fits = (one for one in LENGTHS if last // one - first // one < MOST_WINDOWS)
    length = asked or float(next(fits, (last - first) / MOST_WINDOWS + 1))
    return Windows(first // length * length, length)


def _held(x: str, twins: list[Twin], windows: Windows) -> Iterator[Held]:
    groups = answers(twins, windows.cell)
    calm = min(groups[0], key=lambda one: one.load)
    most = voices(groups[0], windows.cell)
    for number, group in enumerate(groups):
        for one in group:
            tied = number > 0 and voices(group, windows.cell) == most
            yield Held(x, one, calm, windows.cell(one)[1], number > 0, tied)


def _cells(held: Iterable[Held], lived: dict[Any, Conditions], windows: Windows) -> Iterator[Cell]:
    places: dict[tuple[str, int], list[Held]] = defaultdict(list)
    for one in held:
        places[one.cell].append(one)
    for (replica, window), members in sorted(places.items()):
        prompts, odd = {one.x for one in members}, {one.x for one in members if one.odd}
        rows = [rows for one in members if (rows := lived[one.twin.identity].rows) is not None]
        steps = sum((lived[one.twin.identity].regimes for one in members), Counter[str]())
        begins = windows.start + window * windows.length
        yield Cell(
            replica, window, begins, begins + windows.length, len(prompts), len(odd),
            *wilson(len(odd), len(prompts)), sum(rows) / len(rows) if rows else None,
            {state: count / steps.total() for state, count in sorted(steps.items())},
            dict(Counter(replica for _, replica in {(one.x, one.against.identity[1]) for one in members if one.odd})),
        )  # fmt: skip


def _contrasts(held: Iterable[Held], lived: dict[Any, Conditions]) -> list[Contrasted]:
    places: dict[tuple[str, str, int], list[tuple[bool, set[str]]]] = defaultdict(list)
    named: set[str] = set()
    for one in held:
        if one.twin is not one.against:
            told = differing(lived[one.twin.identity], lived[one.against.identity])
            has = {name for name, holds in told if holds}
            named |= has
            places[one.x, *one.cell].append((one.odd, has))
    return contrasts(places, named) if any(one.odd for one in held) else []
