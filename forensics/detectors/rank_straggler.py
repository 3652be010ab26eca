"""One rank computed longer than its peers at the same work, and the others waited for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.communicators import ranks_of
from forensics.findings import Finding, Gap, Rung
from forensics.segments import FEWEST
from forensics.stragglers import FEWEST_RANKS, STRETCHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.communicators import Communicator
    from forensics.incident import Incident
    from forensics.stragglers import Straggler

RUNG = Rung.FABRIC
SEEN = "real engine"
WHO = "which rank was late, if any"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Single out a rank by its compute (`stragglers.py`), near the life of one arm's request and not of the other's.

    Rule: at least 4 ranks; in the segment that a change point marks its compute, per work, is at the median 1.10 times
    its peers' or more, in at least half of the steps, at a robust z of 6 or more. Inputs: collective.compute_ms (or
    start_ts and end_ts) with seq_no and engine_step of every rank; bytes and batch.batch_tokens by rank for the work.
    Competitors of it as a cause of other neighbours or of waiting: a slow wire (`fabric_congestion`), an arrival burst,
    memory that is short, isolation, another configuration. Clock error is none: no clock is compared with another.
    Uneven work is told apart: who has more to do is not late.
    """
    arms = [_late(incident, which) for which in (0, 1)]
    same = {one.rank for _, one in arms[0]} & {one.rank for _, one in arms[1]}
    for which, late in enumerate(arms):
        news = [(comm, one) for comm, one in late if one.rank not in same]
        if news:
            yield _finding(incident, which, news)
            return
    if not same:
        for arm, comms in zip(incident.arms(), incident.fabric, strict=True):
            if not comms and ranks_of(arm.engine) > 1:
                yield Gap("rank_straggler", "collective.compute_ms of every rank", WHO)
                return
            for comm in comms:
                yield from _gaps(comm, ranks_of(arm.engine))


def _late(incident: Incident, which: int) -> list[tuple[Communicator, Straggler]]:
    return [
        (comm, one) for comm in incident.fabric[which] for one in comm.late if incident.near(which, one.first, one.last)
    ]


def _finding(incident: Incident, which: int, late: list[tuple[Communicator, Straggler]]) -> Finding:
    comm, worst = late[0]
    first = min(one.first for _, one in late)
    held = [incident.within(which, one.first, one.last) for _, one in late]
    asked = comm.what_if
    facts: dict[str, Any] = {
        "comm_id": comm.comm_id, "ranks": sorted({one.rank for _, one in late}), "ratio": round(worst.ratio, 4),
        "first": first, "last": max(one.last for _, one in late),
        "removal": asked and asked.removal, "addition": asked and asked.addition, "explains": asked and asked.explains,
    }  # fmt: skip
    where = "" if which == 0 else "in the reference "
    wire = f"; its wire too was slow: {_slow(comm)}" if comm.slow else "; transfers stayed near their baseline"
    says = (
        f"{where}rank {worst.rank} of {comm.ranks} computed {worst.ratio:.3g} times what its peers did in engine steps "
        f"{worst.first} to {worst.last} (robust z {worst.z:.3g}, in {worst.share:.0%} of the steps)"
        f"; {asked.told() if asked else 'its effect cannot be told'}{wire}"
    )
    return Finding(
        "rank_straggler", RUNG, says, min(onset for onset, _ in held),
        facts if which == 0 else None, facts if which == 1 else None, how="derived",
        steps=tuple(sorted({step for _, steps in held for step in steps})),
        citations=incident.cite_collective(which, worst.rank, worst.first),
    )  # fmt: skip


def _slow(comm: Communicator) -> str:
    return ", ".join(
        f"{one.times:.3g} times its baseline in engine steps {one.first} to {one.last}" for one in comm.slow
    )


def _gaps(comm: Communicator, expected: int) -> Iterator[Gap]:
    """Say what keeps a silence from meaning that nobody was late."""
    if comm.missing:
        worst = max(comm.missing, key=lambda rank: comm.missing[rank])
        yield Gap("rank_straggler", f"{comm.missing[worst]:.0%} of the collectives of rank {worst}", WHO)
    elif comm.ranks < expected and comm.ranks < FEWEST_RANKS:
        yield Gap("rank_straggler", f"the collectives of {expected - comm.ranks} of {expected} ranks", WHO)
    elif comm.ranks < FEWEST_RANKS and comm.sync_ms > STRETCHED * (comm.compute_ms + comm.transfer_ms):
        yield Gap("rank_straggler", f"at least {FEWEST_RANKS} ranks in one communicator", WHO)
    elif comm.ranks >= FEWEST_RANKS and comm.judged < FEWEST:
        yield Gap("rank_straggler", "collective.compute_ms of every rank", WHO)
