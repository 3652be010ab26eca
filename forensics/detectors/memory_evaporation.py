"""Memory pinned for replication and for checkpoints together used up what was left of free memory."""

from __future__ import annotations

from itertools import takewhile
from statistics import median
from typing import TYPE_CHECKING

from forensics.contrast import contrast, launches
from forensics.findings import Finding, Gap, Rung
from forensics.headroom import headroom, tightest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from forensics.contrast import Facts, Launches
    from forensics.evidence import Evidence
    from forensics.headroom import Headroom
    from forensics.incident import Incident

RUNG = Rung.MEMORY
SEEN = "simulated only"
FEWEST = 5
"""Launches that a baseline needs: a choice."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Follow effective free memory / KV pool of the tightest rank (free - replication pins - checkpoint pins).

    A launch has evaporated where both pins are held and the ratio is under the border of the regime (0.05). That is a
    finding where it holds in one arm alone and the rank's own baseline was above the border: the median of its launches
    before. Both removals are made: if neither pin alone would do it, the two are needed together; if each would, they
    are redundant, and to release one does not help. Where exactly one alone does it, the pair is not to blame, and
    `memory_pressure` says that memory was short. It begins with the first pin that was still held then.

    Competitors of it as a cause of short memory: the requests themselves (`arrival_burst`), a smaller pool.
    """
    ranks, border = launches(incident), incident.target.limits.evaporation_ratio

    def read(row: Facts) -> Facts:
        known = [one for one in map(headroom, ranks(row)) if one is not None]
        return {"evaporated": _evaporated(known, border) is not None} if known else {}

    found = contrast(incident, read, absent={"evaporated": False})
    if not found.compared:
        yield Gap(
            "memory_evaporation", "batch.isr_pinned_mb and batch.ckpt_pinned_mb with batch.kv_pool_total_mb",
            "whether pinned memory took what was free",
        )  # fmt: skip
        return
    if not found.places:
        return
    _, ours, theirs = found.places[0]
    in_target = ours is not None and read(ours).get("evaporated") is True
    arm, row = (incident.target, ours) if in_target else (incident.arms()[1], theirs)
    low = _evaporated(map(headroom, ranks(row or {})), border)
    if row is None or low is None:
        return
    usual = _baseline(arm, low.rank, row["step"], ranks)
    if len(usual) < FEWEST:
        yield Gap(
            "memory_evaporation", f"batch records of {FEWEST} launches before it", "whether effective memory fell"
        )
    elif median(usual) >= border:
        steps = _held(incident, ranks, found.onset) + found.steps if in_target else found.steps
        ratios = [_ratio(ranks(one)) if one else None for one in (ours, theirs)]
        yield Finding(
            "memory_evaporation", RUNG,
            f"{_says(low, border)}; so in {len(found.places)} of {found.compared} compared steps up to the flip, in "
            f"the {'target' if in_target else 'reference'} alone; the median of its {len(usual)} launches before was "
            f"{median(usual):.1%}",
            min(steps, default=found.onset), ratios[0], ratios[1], how="derived",
            steps=tuple(dict.fromkeys(steps)), citations=found.cite(incident),
        )  # fmt: skip


def _evaporated(known: Iterable[Headroom | None], border: float) -> Headroom | None:
    """Return the tightest of the ranks whose memory both pins took, and not one of them alone."""
    taken = [
        one
        for one in known
        if one is not None
        and min(one.isr, one.ckpt) > 0
        and one.ratio < border
        and (one.without_isr < border) == (one.without_ckpt < border)
    ]
    return min(taken, key=lambda one: one.ratio, default=None)


def _ratio(records: list[Facts]) -> float | None:
    low = tightest(records)
    return low and low.ratio


def _baseline(arm: Evidence, rank: int | None, until: int, ranks: Launches) -> list[float]:
    """Return the rank's ratios in the launches before the request's step `until`: of its run, then its own."""
    own = [one for row in arm.steps.iter_rows(named=True) if row["step"] < until for one in ranks(row)]
    known = [headroom(record) for record in [*arm.around.before.iter_rows(named=True), *own]]
    return [one.ratio for one in known if one is not None and one.rank == rank]


def _held(incident: Incident, ranks: Launches, onset: int) -> tuple[int, ...]:
    """Return the target's steps just before `onset` in which a pin was held already, earliest first."""
    earlier = [row for row in incident.lived()[0].iter_rows(named=True) if row["step"] < onset]
    held = takewhile(lambda row: (low := tightest(ranks(row))) and low.isr + low.ckpt > 0, reversed(earlier))
    return tuple(row["step"] for row in held)[::-1]


def _says(low: Headroom, border: float) -> str:
    rank = "" if low.rank is None else f" on rank {low.rank}"
    without = (
        f"without the first {low.without_isr:.1%} would be left, without the second {low.without_ckpt:.1%}"
        f" (border {border:.0%}): "
    )
    both = "it took both" if low.without_isr >= border else "each alone would do it, so both must go"
    return (
        f"{low.free:g} MiB were free{rank}, {low.isr:g} MiB of that pinned for replication and {low.ckpt:g} MiB for "
        f"checkpoints: {low.ratio:.1%} of the KV pool left; {without}{both}"
    )
