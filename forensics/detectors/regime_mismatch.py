"""The KV regime that the engine states is not the one that its own numbers give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.findings import Finding, Gap, Rung
from forensics.timeline import regime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.MEMORY
SEEN = "simulated only"
STATED = {"normal": "normal", "pressured": "memory_pressured", "paged": "paging"}
"""Recorded `kv_regime` → regime."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Hold `kv_regime` against the regime that free memory and paging of the same rank give, in both arms.

    Isolation and queue are left out of the comparison: a KV regime says nothing of them. It stands beside the chain and
    causes nothing: either the engine draws its borders elsewhere, or one of its numbers is wrong.
    """
    compared, places = 0, []
    for arm, steps in zip(incident.arms(), incident.lived(), strict=True):
        for row in steps.iter_rows(named=True):
            stated, computed = STATED.get(row["regime_kv_recorded"]), _computed(row, arm.limits)
            compared += None not in (stated, computed)
            if None not in (stated, computed) and stated != computed:
                places.append((arm, row["step"], row["regime_kv_recorded"], computed))
    if not compared:
        yield Gap("regime_mismatch", "batch.kv_regime", "whether the engine's own KV regime agrees with its numbers")
        return
    if not places:
        return
    arm, step, stated, computed = places[0]
    name = "target" if arm is incident.target else "reference"
    yield Finding(
        "regime_mismatch", RUNG,
        f"the engine states another KV regime than its numbers give in {len(places)} of {compared} steps of both arms: "
        f"first {stated!r} against {computed!r} at step {step} of the {name}",
        step if arm is incident.target else 0, stated, computed, how="derived",
        steps=tuple(step for one, step, *_ in places if one is incident.target), citations=arm.cite(step),
    )  # fmt: skip


def _computed(row: dict[str, Any], limits: Any) -> str | None:
    found = regime(row["regime_free_mb"], row["regime_paging_on"], False, 0.0, limits)
    return None if found == "unknown" else found
