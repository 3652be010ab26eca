"""The two runs did not see the same tokens, though the same thing was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import ADMISSION, Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.WORKLOAD
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the effective token ids; where ids are on record, say at which position they part."""
    target, reference = incident.arms()
    ours, theirs = (arm.request["effective_token_ids_sha256"] for arm in (target, reference))
    if ours is None or theirs is None:
        yield Gap("effective_request_drift", "effective_token_ids_sha256", "whether both runs saw the same tokens")
        return
    if ours == theirs:
        return
    counts = [arm.request["effective_tokens"] for arm in (target, reference)]
    says = f"the model saw other tokens ({counts[0]} against {counts[1]})"
    one, other = (arm.request["effective_token_ids"] for arm in (target, reference))
    if one and other:
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        says += f", different from input position {at}"
    if target.request["truncated"] or reference.request["truncated"]:
        says += "; truncated: " + " against ".join(str(arm.request["truncated"]) for arm in (target, reference))
    yield Finding(
        "effective_request_drift", RUNG, says, ADMISSION, ours, theirs, citations=target.cite() + reference.cite()
    )
