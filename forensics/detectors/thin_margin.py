"""At the flip the two best tokens were so close that another order of additions can exchange them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import Finding, Gap, Rung
from forensics.stability import budget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.NUMERICS
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Class the smaller distance between the two candidates; a third token's tie says nothing about this flip.

    Beside it stand the margins of the reference's early tokens as a budget (`stability.py`): how little drift would
    have turned one of them, and how near the drift before the flip came to that.
    """
    flip = incident.flip
    if flip is None:
        yield Gap("thin_margin", "step.token_id or step.token_tag", "at which token the outputs part")
        return
    if flip.tie is None:
        missing = "step.logit_dtype" if flip.target_gap is not None else "both candidates among step.top_logits"
        yield Gap("thin_margin", missing, "how close the two candidates were")
        return
    if flip.tie == "clear":
        return
    arms = (("target", flip.target_gap), ("reference", flip.reference_gap))
    stated = ", ".join(f"{gap:.4g} logits in the {name}" for name, gap in arms if gap is not None)
    early = budget(incident)
    target, reference = incident.arms()
    citations = target.cite(flip.target_step) + reference.cite(flip.reference_step)
    yield Finding(
        "thin_margin", RUNG,
        f"{flip.tie} of the two candidates; the arm's own token led the other one by {stated}"
        + ("" if early is None else f"; {early.says()}"),
        flip.target_step if flip.target_step is not None else 0,
        flip.target_gap, flip.reference_gap, citations=citations,
    )  # fmt: skip
