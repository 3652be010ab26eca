"""The launch had another shape: tokens, rows, padding or graph, from which the runtime chooses kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        f"{_apart(ours, theirs)}, the reference {_apart(theirs, ours)}",
        ours["step"] if ours else 0,
        shape_class(ours) if ours else None, shape_class(theirs) if theirs else None,
        how="derived",
        steps=tuple(pair[1]["step"] for pair in differing if pair[1]),
        citations=(target.cite(ours["step"]) if ours else ()) + (reference.cite(theirs["step"]) if theirs else ()),
    )  # fmt: skip


def _apart(row: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """Return the parts of a step's shape class in which it is not as the other one's; no padding where none is."""
    if row is None:
        return "no such step"
    theirs = shape_class(other).split() if other else []
    theirs += [f"padded={row['batch_tokens']}"]
    return " ".join(part for part in shape_class(row).split() if part not in theirs)
