"""Memory was nearly used up in one arm and not in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.contrast import contrast, launches
from forensics.findings import ADMISSION, Finding, Gap, Rung
from forensics.headroom import free_mb, tightest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts, Launches
    from forensics.headroom import Headroom
    from forensics.incident import Incident

RUNG = Rung.MEMORY
SEEN = "real engine"
NEARLY_USED_UP = 0.10
"""Free share of the KV pool below which it is short: a choice. Engines evict or preempt when nothing is left."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare, step by step, whether memory was short: the free share of the KV pool; without it, free memory.

    The share comes first because a small pool is below the regime's border (1024 MiB) at any load. Where pins are held,
    the share of the pool that they leave free on the tightest rank counts too: who is admitted lives on that. Memory
    that is short in both arms is no difference. Where it was short already in the last launch before the target's
    first, it began before the request was admitted.

    Competitors of it as a cause of preemption, eviction and cache misses: `paging` that began before, a configuration
    of another pool size (`environment_change`).
    """
    ranks, border = launches(incident), incident.target.limits.free_mb
    found = contrast(incident, lambda row: _short(row, _left(ranks(row)), border), absent={"short": False})
    if not found.compared:
        yield Gap(
            "memory_pressure", "batch.kv_blocks_free and kv_blocks_total, or batch.headroom_mb",
            "whether memory was short in one of the runs",
        )  # fmt: skip
        return
    if not found.places:
        return
    (ours, our_words), (theirs, their_words) = (_least(steps.to_dicts(), ranks) for steps in incident.lived())
    last = incident.target.around.before.tail(1).to_dicts()
    was_short = found.steps[:1] == (0,) and any(
        _short(record | {"regime_free_mb": free_mb(record)}, _left([record]), border).get("short") for record in last
    )
    yield Finding(
        "memory_pressure", RUNG,
        f"memory was short in one arm alone in {len(found.places)} steps up to the flip: at the least {our_words}, in "
        f"the reference {their_words}",
        ADMISSION if was_short else found.onset, ours, theirs, how="derived",
        steps=found.steps, citations=found.cite(incident),
    )  # fmt: skip


def _left(records: list[Facts]) -> Headroom | None:
    """Return what pins leave free on the tightest rank, None where nothing is pinned."""
    low = tightest(records)
    return low if low is not None and low.isr + low.ckpt > 0 else None


def _short(row: Facts, left: Headroom | None, border_mb: float) -> Facts:
    if left is not None and left.ratio < NEARLY_USED_UP:
        return {"short": True}
    if row["kv_blocks_free"] is not None and row["kv_blocks_total"]:
        return {"short": row["kv_blocks_free"] / row["kv_blocks_total"] < NEARLY_USED_UP}
    free = row["regime_free_mb"]
    return {} if free is None else {"short": free < border_mb}


def _least(rows: list[Facts], ranks: Launches) -> tuple[float | None, str]:
    """Return the smallest free part of the KV pool (free memory in MiB where no pool is on record), and its words."""
    pools = [
        (
            row["kv_blocks_free"] / row["kv_blocks_total"],
            f"{row['kv_blocks_free']} of {row['kv_blocks_total']} KV blocks",
        )
        for row in rows
        if row["kv_blocks_free"] is not None and row["kv_blocks_total"]
    ]
    pinned = [left for row in rows if (left := _left(ranks(row)))]
    pools += [(one.ratio, f"{one.ratio:.1%} of the KV pool (pins counted out)") for one in pinned]
    if pools:
        share, words = min(pools, key=lambda pool: pool[0])
        return share, f"{words} free"
    free_mb = min((row["regime_free_mb"] for row in rows if row["regime_free_mb"] is not None), default=None)
    return free_mb, "free memory not on record" if free_mb is None else f"{free_mb:g} MiB free"
