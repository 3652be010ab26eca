"""Requests of which the same x, or the same question, got different answers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from forensics.cohort import CALM, load_of
from forensics.evidence import gather
from forensics.incident import Incident, compare

if TYPE_CHECKING:
    from forensics.store import Store
    from forensics.timeline import Thresholds


@dataclass(frozen=True)
class Listed:
    """One request whose output differs from its reference. cohort: 'same x' or 'same asked'."""

    cohort: str
    runs: int
    outputs: int
    incident: Incident

    def row(self) -> dict[str, Any]:
        """Return what a list shows of it."""
        target, reference, flip = self.incident.target, self.incident.reference, self.incident.flip
        ulps = [one for one in (flip.target_ulps, flip.reference_ulps) if one is not None] if flip else []
        return {
            "request": target.request["req_id"],
            "client's id": target.request["external_req_id"],
            "reference": reference.request["req_id"] if reference else None,
            "cohort": self.cohort,
            "runs": self.runs,
            "outputs": self.outputs,
            "flip at": flip.token_index if flip else None,
            "margin, ulp": min(ulps, default=None),
            "class": flip.tie if flip else None,
        }


def incidents(store: Store, limits: Thresholds) -> list[Listed]:
    """Return, for each cohort, one request of every output that differs from that of the least loaded run.

    Cut-short completions and unseeded sampling are compared and left out: they are no incidents.
    """
    listed: list[Listed] = []
    for kind, question, key in (("same x", "cohorts", _x), ("same asked", "asked_cohorts", _asked)):
        rows = store.ask(question).to_dicts()
        for _, members in groupby(sorted(rows, key=lambda row: (key(row), row["arrival_ts"] or 0.0)), key=key):
            listed += _of_cohort(store, kind, list(members), limits)
    return listed


def _x(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["input_sha256"]), str(row["model_identity"])


def _asked(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["asked_sha256"]), ""


def _of_cohort(store: Store, kind: str, rows: list[dict[str, Any]], limits: Thresholds) -> list[Listed]:
    outputs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["output"] is not None:  # still running, or cut off before it said anything
            outputs.setdefault(row["output"], []).append(row)
    if len(outputs) < 2:
        return []
    runs = [
        min((gather(store, _request(store, row), limits) for row in group), key=load_of) for group in outputs.values()
    ]
    reference = min(runs, key=load_of)
    found = []
    for run in runs:
        incident = compare(run, reference, CALM, ())
        if run is not reference and incident.standing == "divergence":
            found.append(Listed(kind, len(rows), len(outputs), incident))
    return found


def _request(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    rows = store.ask("request", req_id=row["req_id"]).to_dicts()
    return next(one for one in rows if (one["run_id"], one["replica_id"]) == (row["run_id"], row["replica_id"]))
