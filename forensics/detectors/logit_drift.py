"""The raw logits differ although the tokens so far are the same: the arithmetic was not the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import Finding, Gap, Rung
from forensics.flip import same_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.NUMERICS
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the recorded top logits (or the hash of the whole row) at every output position up to the flip."""
    pairs = incident.token_pairs()
    bits = [(ours, theirs, same_bits(ours, theirs)) for ours, theirs in pairs]
    if not bits or all(equal is None for _, _, equal in bits):
        yield Gap("logit_drift", "step.top_logits", "whether the logits had already drifted before the flip")
        return
    differing = [(ours, theirs) for ours, theirs, equal in bits if equal is False]
    if not differing:
        return
    target, reference = incident.arms()
    ours, theirs = differing[0]
    flip = incident.flip
    at_flip = ""
    if flip is not None and flip.drift is not None:
        at_flip = f"; at the flip the two candidates moved {abs(flip.drift):.4g} logits against each other"
    yield Finding(
        "logit_drift", RUNG,
        f"raw logits differ from output token {ours['token_index']} on, in {len(differing)} of {len(bits)} tokens "
        f"up to the flip{at_flip}",
        ours["step"], ours["top_logits"], theirs["top_logits"],
        citations=target.cite(ours["step"]) + reference.cite(theirs["step"]),
    )  # fmt: skip
