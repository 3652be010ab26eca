"""Collectives took longer on the wire, whoever came last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.communicators import ranks_of
from forensics.congestion import CONGESTED
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.communicators import Communicator
    from forensics.congestion import Slow
    from forensics.incident import Incident

RUNG = Rung.FABRIC
SEEN = "real engine"
WHETHER = "whether the wire was slow"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare transfers, message by message, with what the run takes for them elsewhere (`congestion.py`).

    Rule: in the segment that a change point marks the transfer, the shortest duration of a call over its ranks, is at
    the median 1.5 times its baseline or more, in at least half of the steps, at a robust z of 6 or more against the
    scatter of the calm steps. Early ranks' waiting is not in it. Inputs: collective.comm_ms (or start_ts and end_ts)
    with seq_no, engine_step, op and bytes of every rank; retransmits, where there are any, are told.
    Competitors of it as a cause of other neighbours or of waiting: a late rank (`rank_straggler`), an arrival burst,
    memory that is short, isolation, another configuration.
    """
    arms = [_slow(incident, which) for which in (0, 1)]
    if bool(arms[0]) != bool(arms[1]):
        yield _finding(incident, which := int(not arms[0]), arms[which])
        return
    if arms[0]:
        return
    for which, (arm, comms) in enumerate(zip(incident.arms(), incident.fabric, strict=True)):
        if not comms and ranks_of(arm.engine) > 1:
            yield Gap("fabric_congestion", "collective.comm_ms of every rank", WHETHER)
            return
        for comm in comms:
            unsure = [one for one in comm.unsure if incident.within(which, one.first, one.last)[1]]
            if unsure:
                worst = max(unsure, key=lambda one: one.times)
                field = f"more steps like {worst.first} to {worst.last}, where transfers took {worst.times:.3g} times"
                yield Gap("fabric_congestion", f"{field} their baseline (robust z {worst.z:.2g})", WHETHER)
            elif comm.against is not None and comm.against >= CONGESTED:
                field = f"calm steps of {comm.comm_id}: all its transfers take {comm.against:.3g} times the other run's"
                yield Gap("fabric_congestion", field, "since when the wire was slow")
            elif not comm.timed and comm.ranks > 1:
                yield Gap("fabric_congestion", "collective.comm_ms of every rank", WHETHER)


def _slow(incident: Incident, which: int) -> list[tuple[Communicator, Slow]]:
    return [
        (comm, one) for comm in incident.fabric[which] for one in comm.slow if incident.near(which, one.first, one.last)
    ]


def _finding(incident: Incident, which: int, slow: list[tuple[Communicator, Slow]]) -> Finding:
    comm, worst = max(slow, key=lambda pair: pair[1].times)
    held = [incident.within(which, one.first, one.last) for _, one in slow]
    facts: dict[str, Any] = {
        "comm_id": comm.comm_id, "times": round(worst.times, 4), "regime": worst.regime,
        "first": min(one.first for _, one in slow), "last": max(one.last for _, one in slow),
        "removal": worst.removal, "addition": worst.addition, "explains": worst.explains,
    }  # fmt: skip
    resent = (
        ""
        if worst.retransmits is None
        else f"; {worst.retransmits[0]} retransmissions in it, {worst.retransmits[1]} elsewhere"
    )
    says = (
        f"{'' if which == 0 else 'in the reference '}transfers took {worst.times:.3g} times their baseline in engine "
        f"steps {worst.first} to {worst.last} (robust z {worst.z:.3g}, {worst.regime}); at its baseline these steps "
        f"would be {worst.removal:.0%} shorter, and as slow the calm ones {worst.addition:.0%} longer{resent}; "
        f"{comm.verdict}"
    )
    return Finding(
        "fabric_congestion", RUNG, says, min(onset for onset, _ in held),
        facts if which == 0 else None, facts if which == 1 else None, how="derived",
        steps=tuple(sorted({step for _, steps in held for step in steps})),
        citations=incident.cite_collective(which, None, worst.first),
    )  # fmt: skip
