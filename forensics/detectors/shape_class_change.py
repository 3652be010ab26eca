"""The launch had another shape: tokens, rows, padding or graph, from which the runtime chooses kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import Finding, Gap, Rung
from forensics.timeline import shape_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.PLAN
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the shape class of the two arms step by step up to the flip.

    An unpaired step (another number of prefill chunks, a recomputation) is a difference too.
    """
    target, reference = incident.arms()
    if any(arm.steps["batch_tokens"].null_count() == arm.steps.height for arm in (target, reference)):
        yield Gap("shape_class_change", "batch_tokens", "in which shape the kernels ran")
        return
    pairs = incident.paired()
    differing = [pair for pair in pairs if not pair[1] or not pair[2] or shape_class(pair[1]) != shape_class(pair[2])]
    if not differing:
        return
    _, ours, theirs = differing[0]
    yield Finding(
        "shape_class_change", RUNG,
        f"another launch shape in {len(differing)} of {len(pairs)} steps up to the flip: first "
        f"{shape_class(ours) if ours else 'no such step'}, the reference "
        f"{shape_class(theirs) if theirs else 'no such step'}",
        ours["step"] if ours else 0,
        shape_class(ours) if ours else None, shape_class(theirs) if theirs else None,
        how="derived",
        steps=tuple(pair[1]["step"] for pair in differing if pair[1]),
        citations=(target.cite(ours["step"]) if ours else ()) + (reference.cite(theirs["step"]) if theirs else ()),
    )  # fmt: skip
