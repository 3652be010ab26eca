"""Memory that is left once what is pinned for replication and checkpoints is counted out.

effective free = free - isr_pinned - ckpt_pinned. Its ratio to the KV pool is what `timeline.regime_extended` tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Headroom(NamedTuple):
    """Free, pinned and pool memory of one rank in one launch [MiB]."""

    rank: int | None
    free: float
    isr: float
    ckpt: float
    pool: float

    @property
    def ratio(self) -> float:
        """Return effective free memory as a part of the KV pool."""
        return (self.free - self.isr - self.ckpt) / self.pool

    @property
    def without_isr(self) -> float:
        """Return the ratio if nothing were pinned for replication."""
        return (self.free - self.ckpt) / self.pool

    @property
    def without_ckpt(self) -> float:
        """Return the ratio if nothing were pinned for checkpoints."""
        return (self.free - self.isr) / self.pool


def free_mb(record: dict[str, Any]) -> float | None:
    """Return the smaller of free device memory and the engine's own headroom, as the regimes take it."""
    return min((record[name] for name in ("vram_free_mb", "headroom_mb") if record[name] is not None), default=None)


def headroom(record: dict[str, Any]) -> Headroom | None:
    """Return what a batch record says of it, None where free memory, a pin or a pool is not on record."""
    free = free_mb(record)
    isr, ckpt, pool = (record[name] for name in ("isr_pinned_mb", "ckpt_pinned_mb", "kv_pool_total_mb"))
    if free is None or None in (isr, ckpt) or not pool or pool < 0:
        return None
    return Headroom(record["rank"], free, isr, ckpt, pool)


def tightest(records: list[dict[str, Any]]) -> Headroom | None:
    """Return the smallest effective headroom of the ranks of one launch."""
    return min((one for one in map(headroom, records) if one), key=lambda one: one.ratio, default=None)
