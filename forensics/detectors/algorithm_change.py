"""Other kernels ran: another tactic, kernel variant, or library for the same operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.churn import churn
from forensics.contrast import contrast, differences, factors
from forensics.findings import Finding, Gap, Rung
from forensics.timeline import shape_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.PLAN
SEEN = "simulated only"
FIELDS = ("algo_id", "kernel_variant")
FAMILIES = ("gemm.", "attention.")
ELSEWHERE = (".rows", "gemm.reduced_precision_reduction", "gemm.fp16_accumulation", "gemm.fp32_precision")
"""Factors of these families that are part of the shape or of the precision path."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare algorithm and kernel variant of each step, and the plan factors of GEMM and attention.

    An attention backend alone does not tell which GEMM ran: without any identity of a GEMM this is a gap. Where the
    target's run states `algo_id`, its launches are held against what was usual in the run before (`churn.py`); if the
    reference states none, a share that fell is all there is, and the finding is *inferred*.
    Competitors of it as a cause of other logits: the shape that it may come from, the precision path, the weights.
    """
    found = contrast(incident, _kernels)
    lived = incident.lived()[0]
    fell = churn(incident.target, lived)
    usual = "" if fell is None else f"; in the target's own run {fell.says()}"
    if found.places:
        _, ours, theirs = found.places[0]
        same_shape = sum(shape_class(one or {}) == shape_class(other or {}) for _, one, other in found.places)
        yield Finding(
            "algorithm_change", RUNG,
            f"other kernels ran in {len(found.places)} of {found.compared} compared steps up to the flip, in "
            f"{same_shape} of them at the same launch shape: first "
            f"{differences(_kernels(ours or {}), _kernels(theirs or {}))}{usual}",
            found.onset, _kernels(ours or {}), _kernels(theirs or {}),
            steps=found.steps, citations=found.cite(incident),
        )  # fmt: skip
    elif not contrast(incident, _gemms).compared and fell is not None:
        others = lived.filter(pl.col("algo_id") != fell.algorithm)
        onset = others["step"][0]
        yield Finding(
            "algorithm_change", RUNG,
            f"other algorithms than usual ran in the target's own run: {fell.says()}; that of the reference is not on "
            "record",
            onset, others["algo_id"][0], fell.algorithm, how="inferred", steps=tuple(others["step"]),
            citations=incident.target.cite(onset),
        )  # fmt: skip
    elif not contrast(incident, _gemms).compared:
        yield Gap("algorithm_change", "batch.algo_id or batch.kernel_variant", "whether the same kernels ran")


def _kernels(row: dict[str, Any]) -> Facts:
    facts = {name: row[name] for name in FIELDS if row[name] is not None}
    return facts | {
        name: value
        for name, value in factors(row).items()
        if name.startswith(FAMILIES) and not name.endswith(ELSEWHERE)
    }


def _gemms(row: dict[str, Any]) -> Facts:
    return {name: value for name, value in _kernels(row).items() if not name.startswith("attention.")}
