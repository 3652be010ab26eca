"""Which other requests one can be compared with: the same x, or the same question with another x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forensics.evidence import gather

if TYPE_CHECKING:
    from forensics.evidence import Evidence
    from forensics.store import Store
    from forensics.timeline import Thresholds

CALM = "the one with the fewest tokens a launch"
COHORT_LIMIT = 100
"""Runs of one request that are looked at; a health check may have thousands."""


@dataclass(frozen=True)
class Cohorts:
    """Other requests that this one can be compared with, by both keys, and which key was used.

    same_x: runs of the same effective request; same_asked: of which the same was asked and x is another.
    used: 'same x', 'same asked', 'chosen' (named with --against) or 'none'. other: one of the cohort not used.
    """

    same_x: int = 0
    same_asked: int = 0
    used: str = "none"
    other: str | None = None


ALONE = Cohorts()


def nearest(
    store: Store, rows: list[dict[str, Any]], target: dict[str, Any], limits: Thresholds
) -> tuple[Evidence, ...]:
    """Collect the evidence of the runs that are nearest in time to the target, COHORT_LIMIT at most."""
    order = sorted(rows, key=lambda other: abs((other["arrival_ts"] or 0.0) - (target["arrival_ts"] or 0.0)))
    return tuple(gather(store, other, limits) for other in order[:COHORT_LIMIT])


def runs_of_same_x(store: Store, row: dict[str, Any], model: str | None) -> list[dict[str, Any]]:
    """Return the other requests with the same input and the same model."""
    if row["input_sha256"] is None or model is None:
        return []
    found = []
    for other in store.ask("same_input", input_sha256=row["input_sha256"]).to_dicts():
        engines = store.ask("engine", run_id=other["run_id"], replica_id=other["replica_id"]).to_dicts()
        engine = engines[0] if engines else {}
        if _identity(other) != _identity(row) and (engine.get("weights_sha256") or engine.get("model_id")) == model:
            found.append(other)
    return found


def runs_asked_the_same(store: Store, row: dict[str, Any], same_x: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the other requests of which the same was asked, without those of the same x."""
    if row["asked_sha256"] is None:
        return []
    known = {_identity(one) for one in (row, *same_x)}
    asked = store.ask("same_asked", asked_sha256=row["asked_sha256"]).to_dicts()
    return [one for one in asked if _identity(one) not in known]


def _identity(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["run_id"], row["replica_id"], row["req_id"]


def load_of(evidence: Evidence) -> tuple[float, float]:
    """Return how loaded a run was: mean tokens a launch, then arrival. The least loaded run is the best reference."""
    tokens = evidence.steps["batch_tokens"].drop_nulls().to_list()
    mean = sum(tokens) / len(tokens) if tokens else float("inf")
    return mean, evidence.request["arrival_ts"] or 0.0
