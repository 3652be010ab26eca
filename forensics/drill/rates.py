"""What a drill's recording shows: how often answers differed under each regime, and how far apart the tokens were.

Everything is read back from the log, not from what was asked for. A flip is the first output token that differs from
the idle answer; what follows it has another input and is not counted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from forensics.drill.pairs import compare, margin, tokens
from forensics.drill.regimes import AGAIN, IDLE, MIXED_RATIO, Seen
from forensics.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from forensics.drill.pairs import Pair, Row
    from forensics.drill.run import Phase, Plan
    from forensics.store import Store


@dataclass(frozen=True)
class Count:
    """So many of so many, with the 95 % score interval of the share."""

    hits: int
    of: int

    def interval(self) -> tuple[float, float]:
        """Return the interval as shares."""
        return wilson(self.hits, self.of)


@dataclass(frozen=True)
class Rate:
    """What happened in one phase. unfinished: asked and not compared, cut off or without an idle reference."""

    phase: Phase
    pairs: tuple[Pair, ...]
    unfinished: int
    seen: Seen
    complaint: str | None

    @property
    def flips(self) -> list[Pair]:
        """Return the requests that flipped."""
        return [pair for pair in self.pairs if pair.flip is not None]

    @property
    def requests(self) -> Count:
        """Return flipped requests of those compared."""
        return Count(len(self.flips), len(self.pairs))

    @property
    def tokens(self) -> Count:
        """Return flips among the tokens compared."""
        return Count(len(self.flips), sum(pair.compared for pair in self.pairs))

    @property
    def other_bits(self) -> Count:
        """Return tokens whose logits had other bits than at idle, of those where that is on record."""
        known = [pair for pair in self.pairs if pair.other_bits is not None]
        return Count(sum(pair.other_bits or 0 for pair in known), sum(pair.compared for pair in known))


@dataclass(frozen=True)
class Budget:
    """How much room one family of prompts has at idle, and what the drill took of it.

    margins: top-1 minus top-2 at idle, in ulp of the logit dtype, where on record. moved: the furthest that the two
    best tokens moved against each other under any regime. flips: prompts that flipped under some regime, of those
    compared: one prompt under three regimes is one witness, not three.
    """

    family: str
    margins: tuple[float, ...]
    moved: float | None
    flips: Count

    def within(self, ulps: float) -> float | None:
        """Return the share of tokens whose margin is at most so many ulp; None without margins."""
        return sum(one <= ulps for one in self.margins) / len(self.margins) if self.margins else None

    def in_reach(self) -> float | None:
        """Return the share of tokens whose margin is at most what was seen to move: those may flip under load."""
        return None if self.moved is None else self.within(self.moved) if self.moved else 0.0


@dataclass(frozen=True)
class Drilled:
    """All figures of a drill. steady: idle again beside idle; what flips there is not the work of load."""

    steady: Rate
    regimes: tuple[Rate, ...]
    budgets: tuple[Budget, ...]

    @property
    def flips(self) -> list[Pair]:
        """Return the flips under all regimes."""
        return [flip for rate in self.regimes for flip in rate.flips]


def measure(store: Store, plan: Plan) -> Drilled:
    """Return the figures of a recorded drill."""
    recorded = _by_request(store)
    idle = {asked.prompt.name: recorded.get(asked.req_id, []) for asked in plan.phases[0].requests}
    rates = [_rate(phase, recorded, idle, plan.concurrency) for phase in plan.phases]
    steady = next(rate for rate in rates if rate.phase.name == AGAIN)
    loaded = tuple(rate for rate in rates if rate.phase.name not in (IDLE, AGAIN))
    return Drilled(steady, loaded, tuple(_budgets(plan, idle, loaded)))


def _by_request(store: Store) -> dict[str, list[Row]]:
    rows = store.ask("drill_steps").to_dicts()
    return {name: list(steps) for name, steps in groupby(sorted(rows, key=_place), key=lambda row: str(row["name"]))}


def _place(row: Row) -> tuple[str, str, int]:
    return str(row["name"]), row["run_id"], row["step"]


def _rate(phase: Phase, recorded: dict[str, list[Row]], idle: dict[str, list[Row]], concurrency: int) -> Rate:
    rows = {asked.req_id: recorded.get(asked.req_id, []) for asked in phase.requests}
    compared = [
        compare(asked.req_id, asked.prompt.name, asked.prompt.family, idle[asked.prompt.name], rows[asked.req_id])
        for asked in phase.requests
    ]
    pairs = tuple(pair for pair in compared if pair is not None)
    seen = _seen([row for steps in rows.values() for row in steps])
    complaint = None
    if phase.regime is not None:
        in_flight = min(concurrency, len(phase.requests))
        complaint = phase.regime.complaint(seen, in_flight) if seen.launches else "nothing of it is on record"
    return Rate(phase, pairs, len(compared) - len(pairs), seen, complaint)


def _seen(rows: list[Row]) -> Seen:
    """Return what the log shows of the launches that these steps were part of."""
    launches: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row["engine_step"] is not None and row["batch_size"] is not None:
            launches[row["run_id"], row["engine_step"]].append(row)
    if not launches:
        return Seen()
    sizes = [members[0]["batch_size"] for members in launches.values()]
    widths = [members[0]["batch_tokens"] or 0 for members in launches.values()]
    several = [[row["effective_tokens"] or 0 for row in members] for members in launches.values() if len(members) > 1]
    mixed = sum(max(lengths) >= MIXED_RATIO * max(min(lengths), 1) for lengths in several)
    pools = [row["kv_blocks_total"] for row in rows if row["kv_blocks_total"] is not None]
    return Seen(
        launches=len(launches), rows=(median(sizes), max(sizes)), tokens=(median(widths), max(widths)),
        mixed=mixed / len(several) if several else 0.0,
        preemptions=sum(bool(row["resumed"]) for row in rows), kv_blocks=min(pools, default=None),
    )  # fmt: skip


def _budgets(plan: Plan, idle: dict[str, list[Row]], rates: Sequence[Rate]) -> Iterable[Budget]:
    families = dict.fromkeys(asked.prompt.family for asked in plan.phases[0].requests)
    for family in families:
        own = [asked.prompt.name for asked in plan.phases[0].requests if asked.prompt.family == family]
        margins = [one for name in own for row in tokens(idle[name]) if (one := margin(row)) is not None]
        pairs = [pair for rate in rates for pair in rate.pairs if pair.family == family]
        moves = [pair.moved for pair in pairs if pair.moved is not None]
        flips = Count(
            len({pair.prompt for pair in pairs if pair.flip is not None}), len({pair.prompt for pair in pairs})
        )
        yield Budget(family, tuple(margins), max(moves, default=None), flips)
