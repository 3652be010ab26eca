"""Requests of which the same x, or the same question, got different answers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from forensics.cohort import CALM, load_of
from forensics.evidence import gather
from forensics.incident import Incident, compare
from forensics.searching import Scope, find

if TYPE_CHECKING:
    import polars as pl

    from forensics.evidence import Evidence
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
        return {
            "request": target.request["req_id"],
            "client's id": target.request["external_req_id"],
            "reference": reference.request["req_id"] if reference else None,
            "cohort": self.cohort,
            "runs": self.runs,
            "outputs": self.outputs,
            "flip at": flip.token_index if flip else None,
            "gap, ulp": flip.gap_ulps if flip else None,
            "class": flip.tie if flip else None,
        }


IDENTITY = ("run_id", "replica_id", "req_id")
EVERYTHING = Scope()


def incidents(store: Store, limits: Thresholds, within: Scope = EVERYTHING) -> list[Listed]:
    """Return, for each cohort, one request of every output that differs from that of the least loaded run.

    within: the divergent request lies in it. The one that it is compared with may lie anywhere: a good reference is
    often another replica, or yesterday.
    Cut-short completions and unseeded sampling are compared and left out: they are no incidents.
    """
    listed: list[Listed] = []
    chosen = None if within == EVERYTHING else find(store, within)
    for kind, question, key in (("same x", "cohorts", _x), ("same asked", "asked_cohorts", _asked)):
        rows = _marked(store.ask(question), chosen).to_dicts()
        for _, members in groupby(sorted(rows, key=lambda row: (key(row), row["arrival_ts"] or 0.0)), key=key):
            listed += _of_cohort(store, kind, list(members), limits)
    return listed


def _x(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["input_sha256"]), str(row["model_identity"])


def _asked(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["asked_sha256"]), ""


def _of_cohort(store: Store, kind: str, rows: list[dict[str, Any]], limits: Thresholds) -> list[Listed]:
    outputs: dict[str, list[dict[str, Any]]] = {}
    if not any(row["within"] for row in rows):
        return []
    for row in rows:
        if row["output"] is not None:  # still running, or cut off before it said anything
            outputs.setdefault(row["output"], []).append(row)
    if len(outputs) < 2:
        return []
    calm = {output: _calmest(store, group, limits) for output, group in outputs.items()}
    reference = min(calm.values(), key=load_of)
    found = []
    for output, run in calm.items():
        inside = [row for row in outputs[output] if row["within"]]
        if run is reference or not inside:
            continue
        target = run if len(inside) == len(outputs[output]) else _calmest(store, inside, limits)
        incident = compare(target, reference, CALM, ())
        if incident.standing == "divergence":
            found.append(Listed(kind, len(rows), len(outputs), incident))
    return found


def _marked(rows: pl.DataFrame, chosen: pl.DataFrame | None) -> pl.DataFrame:
    """Return the rows with a column `within`: whether the request is one of the chosen."""
    import polars as pl

    if chosen is None:
        return rows.with_columns(within=pl.lit(value=True))
    inside = chosen.select(*IDENTITY, within=pl.lit(value=True))
    return rows.join(inside, on=IDENTITY, how="left").with_columns(pl.col("within").fill_null(value=False))


def _calmest(store: Store, rows: list[dict[str, Any]], limits: Thresholds) -> Evidence:
    return min((gather(store, _request(store, row), limits) for row in rows), key=load_of)


def _request(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    rows = store.ask("request", req_id=row["req_id"]).to_dicts()
    return next(one for one in rows if (one["run_id"], one["replica_id"]) == (row["run_id"], row["replica_id"]))
