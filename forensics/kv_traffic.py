"""How much KV one launch reads, and how long that takes at the device's bandwidth.

bytes ≈ 2 · B · L · H_kv · D · s · layers: keys and values, B rows of L tokens, H_kv heads of D elements of s bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from forensics.evidence import Evidence

ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Of the compute dtype; a KV cache of its own dtype is not on record."""


def kv_tokens(arm: Evidence, engine_step: int) -> int | None:
    """Return B · L: the tokens over which the rows of a launch attend, None where a row does not say."""
    rows = arm.members.filter(pl.col("engine_step") == engine_step)
    counts = [*rows["num_computed_tokens"], *rows["num_scheduled_tokens"]]
    return None if None in counts or not counts else int(sum(counts))


def kv_bytes(engine: dict[str, Any], tokens: int) -> float | None:
    """Return the KV bytes that one rank reads for so many tokens, None where a dimension is not on record."""
    sizes = [engine.get(name) for name in ("num_kv_heads", "head_size", "num_layers")]
    sizes.append(ELEMENT_BYTES.get(str(engine.get("dtype"))))
    if None in sizes:
        return None
    return 2.0 * tokens * math.prod(int(size) for size in sizes if size) / (engine.get("tp_size") or 1)


def transfer_ms(engine: dict[str, Any], size: float) -> float | None:
    """Return the time that so many bytes take at the recorded bandwidth, None where that is not on record."""
    bandwidth = engine.get("memory_bandwidth_gb_s")
    return size / (bandwidth * 1e6) if bandwidth else None
