"""The token was chosen from the logits by another rule, or a tie was broken the other way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import ADMISSION, Finding, Gap, Rung
from forensics.flip import same_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.PLAN
SEEN = "simulated only"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare `token_rule`; at the flip, look for an exact tie whose members the arms chose from equal logits.

    Where each token is strictly the highest raw logit of its arm, no tie rule had a say, whatever is on record of it.
    Competitor of it as a cause of the token: `logit_drift`; equal logits leave the tie rule alone, logits that differ
    without a tie leave it out.
    """
    target, reference = incident.arms()
    flip = incident.flip
    ours, theirs = (arm.request["token_rule"] for arm in (target, reference))
    citations = target.cite() + reference.cite()
    if ours is not None and theirs is not None and ours != theirs:
        says = f"tokens were chosen by another rule: {ours!r}, in the reference {theirs!r}"
        yield Finding("tie_rule_change", RUNG, says, ADMISSION, ours, theirs, citations=citations)
        return
    if flip is not None and flip.target_gap == flip.reference_gap == 0 and _equal_at_flip(incident):
        citations = target.cite(flip.target_step) + reference.cite(flip.reference_step)
        yield Finding(
            "tie_rule_change", RUNG,
            f"equal logits with an exact tie: the arms chose different members of it ({flip.target_token}, in the "
            f"reference {flip.reference_token}), so the rule was not the same, whatever its name",
            flip.target_step or 0, flip.target_token, flip.reference_token, how="derived", citations=citations,
        )  # fmt: skip
        return
    strict = flip is not None and flip.from_logits and 0 not in (flip.target_gap, flip.reference_gap)
    if not strict and (ours is None or theirs is None):
        yield Gap("tie_rule_change", "request.token_rule", "whether both runs chose the token by the same rule")


def _equal_at_flip(incident: Incident) -> bool:
    pairs = incident.token_pairs()
    return bool(pairs) and same_bits(*pairs[-1]) is True
