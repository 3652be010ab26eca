"""At the flip the two best tokens were so close that another order of additions can exchange them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.NUMERICS
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Class the smaller of the two margins at the flip; a clear margin is no finding here."""
    flip = incident.flip
    if flip is None:
        yield Gap("thin_margin", "step.token_id or step.token_tag", "at which token the outputs part")
        return
    if flip.tie is None:
        yield Gap("thin_margin", "step.top_logits and step.logit_dtype", "how close the decision was")
        return
    if flip.tie == "clear":
        return
    arms = (("target", flip.target_margin, flip.target_ulps), ("reference", flip.reference_margin, flip.reference_ulps))
    stated = ", ".join(
        f"{margin:.4g} logits{f' ({ulps:.3g} {flip.dtype} ulp)' if ulps is not None else ''} in the {name}"
        for name, margin, ulps in arms
        if margin is not None
    )
    target, reference = incident.arms()
    citations = target.cite(flip.target_step) + reference.cite(flip.reference_step)
    yield Finding(
        "thin_margin", RUNG, f"{flip.tie} at the flip: top-1 led by {stated}",
        flip.target_step if flip.target_step is not None else 0,
        flip.target_margin, flip.reference_margin, citations=citations,
    )  # fmt: skip
