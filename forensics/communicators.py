"""Each communicator of an arm: where its steps went, which rank was late, whether its wire was slow, or neither.

Late rank, slow wire and uneven work are told apart: compute of one rank above its peers' for the same work; transfers
above their baseline; compute above the peers' by no more than bytes or tokens are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics import congestion
from forensics.congestion import against, medians
from forensics.fabric import bandwidth, calls, fits, measured, quantiles, step_times, with_peers
from forensics.stragglers import (
    FEWEST_RANKS,
    LATE,
    Counterfactual,
    Straggler,
    candidates,
    counterfactual,
    ratios,
    singled_out,
    waited_for,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.congestion import Slow
    from forensics.evidence import Evidence
    from forensics.fabric import Fit
    from forensics.timeline import Span

NOTHING = pl.DataFrame(schema={"op": pl.String, "bytes": pl.Int64, "members": pl.UInt32, "base_ms": pl.Float64})
"""No message, and no time of it."""
COMPLETE = 0.9
"""Share of a communicator's calls that a rank must have on record, or its silence means nothing."""


@dataclass(frozen=True)
class Communicator:
    """What the collectives of one communicator come to, over the engine steps on record from `first` to `last`.

    compute_ms, transfer_ms, sync_ms: sums over these steps. skew_ms, waiting of the earliest rank in a call, and
    call_ms: quantiles. missing: rank → share of the calls of which it has no record. late: ranks that are singled out
    and waited for; what_if: what they explain; uneven: ranks that computed more because they had more to do; worst: who
    came nearest to being late. slow: where transfers were; unsure: where they may have been, but scatter too much to
    tell; spans: the fabric's regime, from and to engine steps; against: how many times the other arm's transfers are,
    over all steps. judged: steps in which ranks could be compared; timed: calls whose transfer is known; clocks: on how
    many the records were written. verdict: who or what held the steps up, in words.
    """

    comm_id: str
    ranks: int
    first: int
    last: int
    steps: int
    compute_ms: float
    transfer_ms: float
    sync_ms: float
    skew_ms: dict[str, float]
    call_ms: dict[str, float]
    bandwidth: dict[str, float]
    fits: tuple[Fit, ...]
    missing: dict[int, float]
    late: tuple[Straggler, ...]
    what_if: Counterfactual | None
    uneven: tuple[Straggler, ...]
    slow: tuple[Slow, ...]
    unsure: tuple[Slow, ...]
    spans: tuple[Span, ...]
    worst: Straggler | None
    against: float | None
    judged: int
    timed: int
    clocks: int
    verdict: str = ""


def _verdict(one: Communicator) -> str:
    """Return in a sentence who or what held the steps up, and say so where it is nobody."""
    said = [f"rank {late.rank} is late ({late.ratio:.3g} times its peers)" for late in one.late[:3]]
    said += [f"transfers took {wire.times:.3g} times their baseline" for wire in one.slow[:3]]
    said += [f"rank {more.rank} computed longer, and had {more.work:.3g} times the work" for more in one.uneven[:3]]
    if one.ranks < FEWEST_RANKS:
        said.append(f"among {one.ranks} ranks nobody can say which one is odd")
    elif not one.late:
        near = one.worst
        by = f" (nearest: rank {near.rank}, {near.ratio:.3g} times its peers, robust z {near.z:.2g})" if near else ""
        said.append(f"no rank is singled out{by}")
    return "; ".join(said)


def read(arms: Sequence[Evidence], until: Sequence[int | None]) -> tuple[tuple[Communicator, ...], ...]:
    """Return the communicators of two arms, up to an engine step of its own each; () for one without collectives."""
    records = [_records(arm, last) for arm, last in zip(arms, until, strict=True)]
    each = [None if one is None else calls(one) for one in records]
    usual = [NOTHING if some is None else medians(some) for some in each]
    return tuple(
        () if one is None or some is None else tuple(_communicators(one, some, elsewhere))
        for one, some, elsewhere in zip(records, each, reversed(usual), strict=True)
    )


def _records(arm: Evidence, last: int | None) -> pl.DataFrame | None:
    if arm.around.collectives.is_empty():
        return None
    lived = arm.around.collectives if last is None else arm.around.collectives.filter(pl.col("engine_step") <= last)
    joined = measured(lived)
    return None if joined.is_empty() else with_peers(joined)


def _communicators(records: pl.DataFrame, every: pl.DataFrame, elsewhere: pl.DataFrame) -> list[Communicator]:
    found = []
    for (comm_id,), own in records.group_by("comm_id", maintain_order=True):
        some = every.filter(pl.col("comm_id") == comm_id)
        for_work = ratios(own, per_work=True)
        near, raised = candidates(for_work), congestion.slow(some, elsewhere)
        suspects, total = singled_out(near), step_times(some)
        late = waited_for(own, suspects) if suspects else []
        by_work = singled_out(candidates(ratios(own, per_work=False)))
        wire = tuple(one for one in raised if one.z >= congestion.CERTAIN)
        read = (
            Communicator(
                comm_id=str(comm_id), ranks=own["rank"].n_unique(), first=_int(some, "min"), last=_int(some, "max"),
                steps=total.height, compute_ms=float(total["compute_ms"].sum()),
                transfer_ms=float(total["transfer_ms"].sum()), sync_ms=float(total["sync_ms"].sum()),
                skew_ms=quantiles(some["skew_ms"]), call_ms=quantiles(own["comm_ms"]), bandwidth=bandwidth(some),
                fits=fits(some), missing=_missing(own, some.height), late=tuple(late),
                what_if=counterfactual(own, late) if late else None,
                uneven=tuple(one for one in by_work if _by_work(one, late)), slow=wire,
                unsure=tuple(one for one in raised if one not in wire and one.times >= congestion.DEGRADED),
                spans=congestion.spans(total["engine_step"].to_list(), wire), against=against(some, elsewhere),
                worst=max(near, key=lambda one: one.ratio, default=None),
                judged=for_work["engine_step"].n_unique(), timed=some["transfer_ms"].count(),
                clocks=own["clock_id"].n_unique(),
            )
        )  # fmt: skip
        found.append(replace(read, verdict=_verdict(read)))
    return found


def _int(some: pl.DataFrame, which: str) -> int:
    return int(getattr(some["engine_step"], which)())


def _missing(own: pl.DataFrame, every: int) -> dict[int, float]:
    counts = own.group_by("rank").len().sort("rank").iter_rows()
    return {rank: 1 - count / every for rank, count in counts if count < COMPLETE * every}


def _by_work(one: Straggler, late: Sequence[Straggler]) -> bool:
    return one.work > LATE and one.rank not in {other.rank for other in late}


def ranks_of(engine: dict[str, Any] | None) -> int:
    """Return how many ranks work on one token, as the engine record states it; 1 where it does not."""
    sizes = [(engine or {}).get(name) or 1 for name in ("tp_size", "pp_size")]
    return int(sizes[0] * sizes[1])
