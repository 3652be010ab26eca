"""A tactic's workspace did not fit into the largest free block of memory, so the tactic could not run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.contrast import contrast, launches
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.MEMORY
SEEN = "simulated only"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Hold `largest_free_block_mb` against `workspace_required_mb` on every rank, step by step up to the flip.

    A launch in which some rank's largest free block was smaller, in one arm alone, is a finding. What was free in all
    (`vram_free_mb`, else `workspace_free_mb`) tells fragmentation, where that was enough but in pieces, from shortage.
    Where both arms ran on a CPU nothing is looked at: its libraries take scratch from the heap.

    Competitors of it as a cause of other kernels: the launch shape, which decides tactic and workspace; a kernel that
    fell back for another reason; another environment.
    """
    if all((arm.engine or {}).get("device_type") == "cpu" for arm in incident.arms()):
        return
    ranks = launches(incident)
    found = contrast(incident, lambda row: _fits(ranks(row)), absent={"fits": True})
    if not found.compared:
        yield Gap(
            "workspace_infeasible", "batch.largest_free_block_mb and batch.workspace_required_mb",
            "whether the workspace of a tactic fitted into free memory",
        )  # fmt: skip
        return
    if not found.places:
        return
    _, ours, theirs = found.places[0]
    tightest = [_tightest(ranks(row)) if row else None for row in (ours, theirs)]
    name, short = next(
        (name, one) for name, one in zip(("target", "reference"), tightest, strict=True) if one and _missing(one) > 0
    )
    blocks = [one and one["largest_free_block_mb"] for one in tightest]
    yield Finding(
        "workspace_infeasible", RUNG,
        f"a workspace did not fit in one arm alone in {len(found.places)} of {found.compared} compared steps up to the "
        f"flip: first in the {name}, {_says(short)}",
        found.onset, blocks[0], blocks[1], how="derived", steps=found.steps, citations=found.cite(incident),
    )  # fmt: skip


def _fits(records: list[Facts]) -> Facts:
    tightest = _tightest(records)
    return {} if tightest is None else {"fits": _missing(tightest) <= 0}


def _tightest(records: list[Facts]) -> Facts | None:
    stated = [one for one in records if None not in (one["largest_free_block_mb"], one["workspace_required_mb"])]
    return max(stated, key=_missing, default=None)


def _missing(record: Facts) -> float:
    return float(record["workspace_required_mb"] - record["largest_free_block_mb"])


def _says(record: Facts) -> str:
    block, required = record["largest_free_block_mb"], record["workspace_required_mb"]
    rank = "" if record["rank"] is None else f" on rank {record['rank']}"
    says = f"where {required:g} MiB were needed{rank} and the largest free block had {block:g} MiB"
    free: Any = record["vram_free_mb"] if record["vram_free_mb"] is not None else record["workspace_free_mb"]
    if free is None:
        return says + "; how much was free in all is not on record, so fragmentation is not told from shortage"
    if free >= required:
        return says + f": fragmentation, as {free:g} MiB were free in all"
    return says + f": shortage, as only {free:g} MiB were free in all"
