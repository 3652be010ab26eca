"""The isolation posture differs between the runs or changed: strict isolation forbids shared batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.contrast import contrast, differences
from forensics.findings import ADMISSION, Citation, Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.ENVIRONMENT
SEEN = "simulated only"
FIELDS = ("isolation_mode", "cross_tenant_batching")


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the facts that both arms state: of the engine, of the request, and of each launch up to the flip.

    Facts of one source are compared with the same source in the other arm; no source on record in both is a gap.
    Competitors of it as a cause of other neighbours: arrivals, queue, memory, another configuration.
    """
    target, reference = incident.arms()
    facts = [_facts(arm) for arm in (target, reference)]
    launches = contrast(incident, _launch)
    settled = differences(*facts)
    if settled:
        steps = tuple(incident.lived()[0]["step"].to_list())
        yield Finding(
            "isolation_posture", RUNG, f"the isolation posture differs: {settled}", ADMISSION, facts[0], facts[1],
            steps=steps, citations=_cite(target) + _cite(reference),
        )  # fmt: skip
    elif launches.places:
        _, ours, theirs = launches.places[0]
        one, other = _launch(ours or {}), _launch(theirs or {})
        yield Finding(
            "isolation_posture", RUNG,
            f"the isolation posture of {len(launches.places)} of {launches.compared} launches up to the flip differs: "
            f"first {differences(one, other)}",
            launches.onset, one, other, steps=launches.steps, citations=launches.cite(incident),
        )  # fmt: skip
    elif not (facts[0].keys() & facts[1].keys() or launches.compared):
        yield Gap(
            "isolation_posture", "engine.isolation, request.isolation_mode or batch.isolation_mode",
            "whether both runs were isolated alike",
        )  # fmt: skip


def _facts(arm: Evidence) -> Facts:
    request = {f"request.{name}": arm.request[name] for name in FIELDS if arm.request[name] is not None}
    return {f"engine.{name}": value for name, value in arm.posture().items()} | request


def _launch(row: dict[str, Any]) -> Facts:
    return {} if row["isolation_mode"] is None else {"isolation_mode": row["isolation_mode"]}


def _cite(arm: Evidence) -> tuple[Citation, ...]:
    engine = (Citation(arm.engine["source_path"], arm.engine["line"]),) if arm.posture() and arm.engine else ()
    return arm.cite() + engine
