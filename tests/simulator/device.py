"""What each rank runs for a launch: tactic by shape class, precision path, and how long it computes."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulator.conditions import Conditions

CAPTURED = (1, 2, 4, 8, 16, 32, 48, 64)
TACTICS = {1: 11, 2: 11, 4: 13, 8: 17, 16: 23, 32: 42, 48: 47, 64: 51}
"""Padded decode size to algorithm id: a heuristic's table. Prefills of any size run one tactic."""
PREFILL_TACTIC, RETUNED_PREFILL, RETUNED, WITHOUT_WORKSPACE = 66, 68, 61, 7
WORKSPACE_MB = 64.0  # what the split-K tactics of decode want
NOISE = 0.01
FIXED_MS, ROW_MS, PREFILL_MS, PREFILL_TOKEN_MS, KV_TOKEN_US = 14.0, 0.12, 4.0, 0.012, 0.1


@dataclass(frozen=True)
class Work:
    """What one rank did in one launch."""

    algo: int
    variant: str
    path: str
    requant_cycles: int
    fallback_reason: str | None
    compute_ms: float

    @property
    def arithmetic(self) -> str:
        """Return what decides the bits on this rank."""
        return f"{self.algo}/{self.path}/{self.requant_cycles}"


def padded(rows: int, how: str) -> int:
    """Return the size that the kernels run for a decode launch."""
    if how == "none":
        return rows
    size = next((one for one in CAPTURED if one >= rows), rows)
    return size if how == "bucket" else next((one for one in CAPTURED if one > size), size)


def works(
    step: int, tokens: int, size: int, kv_tokens: int, *, prefill: bool, workspace_mb: float, now: Conditions,
    ranks: int, seed: str,
) -> tuple[Work, ...]:  # fmt: skip
    """Return the work of every rank. KV reads slow down as blocks lie apart: their lines miss the L2."""
    draw = Random(f"{seed}/{step}")
    ms = PREFILL_MS + tokens * PREFILL_TOKEN_MS if prefill else FIXED_MS + ROW_MS * size
    ms += kv_tokens * KV_TOKEN_US / 1000
    ms *= now.all_slow * (1.0 + 1.2 * now.block_scatter)
    retuned = Random(f"tuning/{step // 3}").random() < now.retuned_share and not prefill
    found = []
    for rank in range(ranks):
        own = ms * dict(now.rank_slow).get(rank, 1.0) * draw.lognormvariate(0.0, NOISE)
        algo, reason = _tactic(size, prefill=prefill, workspace_mb=workspace_mb)
        if prefill and now.churn_elsewhere:
            algo = RETUNED_PREFILL
        if retuned:
            algo = RETUNED
        if rank in now.fallback_ranks:
            algo, reason, own = WITHOUT_WORKSPACE, "unsupported_config", own * 1.05
        requant = now.requant_cycles if rank in now.requant_ranks else 0
        path = f"{now.precision_path}>bf16>{now.precision_path}" if requant else now.precision_path
        own *= 1.0 + 0.06 * requant
        found.append(Work(algo, f"gemm_{algo}", path, requant, reason, own))
    return tuple(found)


def _tactic(size: int, *, prefill: bool, workspace_mb: float) -> tuple[int, str | None]:
    if prefill:
        return PREFILL_TACTIC, None
    if workspace_mb < WORKSPACE_MB:
        return WITHOUT_WORKSPACE, "workspace"
    known = TACTICS.get(size)
    if known is None:  # no captured size: the tail of the last 16-wide fragment runs another loop
        known = 100 + size % 16
    return known, None
