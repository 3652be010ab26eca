"""Memory was nearly used up in one arm and not in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.contrast import contrast
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.MEMORY
SEEN = "real engine"
NEARLY_USED_UP = 0.10
"""Free share of the KV pool below which it is short: a choice. Engines evict or preempt when nothing is left."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare, step by step, whether memory was short: the free share of the KV pool; without it, free memory.

    The share comes first because a small pool is below the regime's border (1024 MiB) at any load. Memory that is short
    in both arms is no difference. Competitors of it as a cause of preemption, eviction and cache misses: `paging` that
    began before, a configuration of another pool size (`environment_change`).
    """
    found = contrast(incident, lambda row: _short(row, incident.target.limits.free_mb), absent={"short": False})
    if not found.compared:
        yield Gap(
            "memory_pressure", "batch.kv_blocks_free and kv_blocks_total, or batch.headroom_mb",
            "whether memory was short in one of the runs",
        )  # fmt: skip
        return
    if not found.places:
        return
    (ours, our_words), (theirs, their_words) = (_least(steps.to_dicts()) for steps in incident.lived())
    yield Finding(
        "memory_pressure", RUNG,
        f"memory was short in one arm alone in {len(found.places)} steps up to the flip: at the least {our_words}, in "
        f"the reference {their_words}",
        found.onset, ours, theirs, how="derived", steps=found.steps, citations=found.cite(incident),
    )  # fmt: skip


def _short(row: dict[str, Any], border_mb: float) -> Facts:
    if row["kv_blocks_free"] is not None and row["kv_blocks_total"]:
        return {"short": row["kv_blocks_free"] / row["kv_blocks_total"] < NEARLY_USED_UP}
    free = row["regime_free_mb"]
    return {} if free is None else {"short": free < border_mb}


def _least(rows: list[dict[str, Any]]) -> tuple[float | None, str]:
    """Return the smallest free part of the KV pool (free memory in MiB where no pool is on record), and its words."""
    pools = [
        (row["kv_blocks_free"] / row["kv_blocks_total"], row["kv_blocks_free"], row["kv_blocks_total"])
        for row in rows
        if row["kv_blocks_free"] is not None and row["kv_blocks_total"]
    ]
    if pools:
        share, free, total = min(pools, key=lambda pool: pool[0])
        return share, f"{free} of {total} KV blocks free"
    free_mb = min((row["regime_free_mb"] for row in rows if row["regime_free_mb"] is not None), default=None)
    return free_mb, "free memory not on record" if free_mb is None else f"{free_mb:g} MiB free"
