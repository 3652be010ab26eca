"""One rank late, or nobody singled out: a rank's compute against that of its peers, and what the step loses by it.

The rule and the two-way counterfactual are those of trace_forensics 4.1 and 4.4, after ByteDance's StragglerAnalysis.
Works on records that `fabric.with_peers` has prepared; never opens a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import polars as pl

from forensics.fabric import CALL
from forensics.segments import autocorrelation, by_chance, deviations, raised, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

FEWEST_RANKS = 4
"""Among fewer ranks nobody can say which one is odd."""
LATE = 1.10
CERTAIN = 6.0
"""A late rank computes so many times what its peers do, and stands out by so many robust standard deviations."""
EXPLAINS = 0.5
"""Share of the stretch that a removal must give back, and an addition bring, to explain it."""
STRETCHED = 0.05
"""Share by which waiting must have made the steps longer than the calm ones, to ask for the reason at all."""


@dataclass(frozen=True)
class Straggler:
    """A rank in the engine steps from `first` to `last`, both included.

    ratio: its compute over its peers' median, at the median step. share: of the steps in which that is above LATE.
    z: robust standard deviations that ratio is above 1. work: the most that its bytes or tokens were over its peers'.
    """

    rank: int
    ratio: float
    share: float
    z: float
    first: int
    last: int
    work: float = 1.0


@dataclass(frozen=True)
class Counterfactual:
    """What the steps lost, and what becomes of it without `ranks`, or with them alone; shares, None: cannot be told.

    lost: share by which waiting made the steps longer than it does in the calm ones.
    removal: of `lost` that comes back where the ranks compute as their peers do. addition: of `lost` that appears in
    the calm steps where they are made as slow. alone: the removal of the first of several ranks.
    """

    ranks: tuple[int, ...]
    lost: float
    removal: float | None
    addition: float | None
    alone: float | None = None

    @property
    def weighs(self) -> bool:
        """Return whether the steps were stretched, and the ranks could have done it: others may be as late."""
        return self.removal is not None and max(self.removal, self.addition or 0.0) >= EXPLAINS

    @property
    def explains(self) -> bool | None:
        """Return whether the ranks account for the stretch, both ways; None where that cannot be told."""
        if self.removal is None or self.addition is None:
            return None
        return min(self.removal, self.addition) >= EXPLAINS

    def told(self) -> str:
        """Return it as half a sentence."""
        if self.removal is None:
            return "steps were not stretched by waiting"
        with_peers = f"computing as its peers do, it would give back {self.removal:.0%} of what the steps lost"
        if self.alone is not None:
            others = ", ".join(map(str, self.ranks[1:]))
            with_peers = (
                f"alone it would give back {self.alone:.0%} of what the steps lost, with {others} {self.removal:.0%}"
            )
        if self.addition is None:
            return f"{with_peers}; no calm step is on record to add it to"
        return f"{with_peers}, and as slow in the calm steps it would bring {self.addition:.0%} of it"


def ratios(records: pl.DataFrame, *, per_work: bool) -> pl.DataFrame:
    """Return (engine_step, rank, ratio, work): compute of a step over the peers' median, from calls with enough peers.

    per_work: divided by how much more bytes or tokens the rank had than its peers, so that the same work is compared.
    """
    work = pl.max_horizontal(
        pl.lit(1.0), pl.col("bytes") / pl.col("peers_bytes"), pl.col("batch_tokens") / pl.col("peers_batch_tokens")
    )
    ratio = pl.col("compute_ms").sum() / pl.col("peers_compute_ms").sum()
    known = (pl.col("peers") >= FEWEST_RANKS - 1) & (pl.col("peers_compute_ms") > 0)
    return (
        records.filter(known)
        .group_by("engine_step", "rank")
        .agg(ratio.alias("ratio"), work.fill_nan(1.0).max().alias("work"))
        .with_columns(pl.col("ratio") / pl.col("work") if per_work else pl.col("ratio"))
        .sort("engine_step", "rank")
    )


def singled_out(near: Sequence[Straggler]) -> list[Straggler]:
    """Return the candidates that stand out enough, the slowest first."""
    return sorted((one for one in near if one.z >= CERTAIN), key=lambda one: -one.ratio)


def candidates(by_step: pl.DataFrame) -> list[Straggler]:
    """Return every rank in every segment in which it is above LATE, however little it stands out."""
    found = []
    for (rank,), own in by_step.group_by("rank", maintain_order=True):
        steps, values, work = (own[name].to_list() for name in ("engine_step", "ratio", "work"))
        for first, last, middle in raised(values, LATE):
            part = values[first : last + 1]
            inside = by_step.filter(pl.col("engine_step").is_between(steps[first], steps[last]))
            share = sum(one > LATE for one in part) / len(part)
            z = _stands_out(inside, int(str(rank)), middle)
            most = median(work[first : last + 1])
            found.append(Straggler(int(str(rank)), middle, share, z, steps[first], steps[last], most))
    return found


def _stands_out(inside: pl.DataFrame, rank: int, middle: float) -> float:
    """Return by how many robust standard deviations a rank's median ratio is above 1.

    The deviation is that of the ranks' medians, and never less than what a median of so few values has by chance: the
    peers' scatter from step to step, over the root of how many independent steps there are.
    """
    groups = {int(str(key)): group["ratio"].to_list() for (key,), group in inside.group_by("rank")}
    between = spread([median(values) for values in groups.values()])
    peers = [values for key, values in groups.items() if key != rank]
    within = by_chance(
        median(spread(values) for values in peers),
        len(groups[rank]),
        median(autocorrelation(values) for values in peers),
    )
    return deviations(middle - 1, max(between, within))


def waited_for(records: pl.DataFrame, suspects: Sequence[Straggler]) -> list[Straggler]:
    """Return the suspects for whom the others had to wait: a rank that is slow and never last holds nothing up."""
    calm = ~_within(suspects)
    return [one for one in suspects if _ask(records, [one], _within([one]), calm).weighs]


def _within(suspects: Sequence[Straggler]) -> pl.Expr:
    return pl.any_horizontal(pl.col("engine_step").is_between(one.first, one.last) for one in suspects)


def counterfactual(records: pl.DataFrame, suspects: Sequence[Straggler]) -> Counterfactual:
    """Ask both ways what the first suspect explains; where others are as late, enlarge the set until it does.

    Low removal with high addition: the first could have done it, but others hold the step up as well.
    """
    segment, calm = _within(suspects[:1]), ~_within(suspects)
    alone = asked = _ask(records, suspects[:1], segment, calm)
    beside = list({one.rank: one for one in suspects if one.rank != suspects[0].rank}.values())
    for count in range(1, len(beside) + 1):
        if asked.removal is None or asked.removal >= EXPLAINS or (asked.addition or 0.0) < EXPLAINS:
            break
        asked = _ask(records, [suspects[0], *beside[:count]], segment, calm)
    if asked is alone:
        return alone
    return Counterfactual(asked.ranks, asked.lost, asked.removal, asked.addition, alone.removal)


def _ask(records: pl.DataFrame, suspects: Sequence[Straggler], segment: pl.Expr, calm: pl.Expr) -> Counterfactual:
    """Compute steps again: each collective ends when the last has arrived, and its transfer is over.

    Stretch of a set of steps: their time over what it were if every rank computed as the median of the others does.
    """
    ranks = [one.rank for one in suspects]
    suspect = pl.col("rank").is_in(ranks)
    usual = pl.col("compute_ms").filter(~suspect).median().over(CALL)
    as_slow = usual * pl.col("rank").replace_strict({one.rank: one.ratio for one in suspects}, default=1.0)
    transfer = pl.col("comm_ms").min().over(CALL)

    def until(own: pl.Expr) -> pl.Expr:
        return own.max() + pl.col("transfer").first()

    times = (
        records.with_columns(segment=segment, calm=calm, transfer=transfer, usual=usual, as_slow=as_slow)
        .drop_nulls(["compute_ms", "usual", "transfer"])
        .group_by(CALL)
        .agg(
            pl.col("segment", "calm").first(),
            until(pl.col("compute_ms")).alias("recorded"),
            until(pl.when(suspect).then("usual").otherwise("compute_ms")).alias("without"),
            until(pl.when(suspect).then("as_slow").otherwise("compute_ms")).alias("added"),
            until(pl.col("usual")).alias("even"),
        )
    )  # fmt: skip
    late, quiet = times.filter("segment"), times.filter("calm")
    base = _stretch(quiet, "recorded") or 0.0
    lost = (_stretch(late, "recorded") or 0.0) - base
    if lost <= STRETCHED:
        return Counterfactual(tuple(ranks), lost, None, None)
    removal = 1 - ((_stretch(late, "without") or 0.0) - base) / lost
    added = _stretch(quiet, "added")
    return Counterfactual(tuple(ranks), lost, removal, None if added is None else (added - base) / lost)


def _stretch(times: pl.DataFrame, name: str) -> float | None:
    even = float(times["even"].sum())
    return float(times[name].sum()) / even - 1 if even > 0 else None
