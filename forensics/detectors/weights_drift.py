"""The two runs did not load the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import ADMISSION, Citation, Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.ENVIRONMENT
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the weight hashes. A model id alone proves nothing: checkpoints are replaced under one name."""
    target, reference = incident.arms()
    if target.identity[:2] == reference.identity[:2] and target.identity[0]:
        return
    ours, theirs = ((arm.engine or {}).get("weights_sha256") for arm in (target, reference))
    if ours is None or theirs is None:
        yield Gap("weights_drift", "weights_sha256", "whether both runs loaded the same weights")
    elif ours != theirs:
        citations = [
            Citation(arm.engine["source_path"], arm.engine["line"]) for arm in (target, reference) if arm.engine
        ]
        says = f"the weights differ ({ours[:12]} against {theirs[:12]})"
        yield Finding("weights_drift", RUNG, says, ADMISSION, ours, theirs, citations=tuple(citations))
