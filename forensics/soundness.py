"""Logits that no legal arithmetic gives on one input: not numbers, or too far from where the other arm has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.flip import logit_table
from forensics.margin import in_ulps

if TYPE_CHECKING:
    from forensics.incident import Incident

FAR_ULPS = 100.0
"""A logit that moved by more, in ulps of bfloat16 whatever its own dtype (over 39 % of its value), was not rounded
otherwise: a choice. Natural flips are seen at 0 to 3."""


def known(row: dict[str, Any]) -> bool:
    """Return whether a step says anything of its logits."""
    return bool(row["top_logits"]) or row["nonfinite_logits"] is not None


def unsound(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Return what is unsound in one of two steps that chose the same output token, None where nothing on record is."""
    token, broken = ours["token_index"], [bool(row["nonfinite_logits"]) for row in (ours, theirs)]
    if broken[0] != broken[1] and known(ours) and known(theirs):
        name = "target" if broken[0] else "reference"
        return f"output token {token} of the {name} was chosen from logits that are NaN or infinite"
    if not (ours["top_logits"] and theirs["top_logits"]):
        return None
    mine, others = logit_table(ours), logit_table(theirs)
    pairs = [(ours["top_logits"][0], theirs["top_logits"][0])]
    pairs += [(mine[one], others[one]) for one in mine.keys() & others.keys()]
    apart, here, there = max((_ulps_apart(*pair), *pair) for pair in pairs)
    if apart <= FAR_ULPS:
        return None
    where = f"at output token {token} a logit is {here:.4g}, in the reference {there:.4g}"
    return f"{where}: {apart:.0f} ulp of bfloat16 apart"


def beyond_rounding(incident: Incident) -> str | None:
    """Return what is unsound up to the flip though the effective input was the same, None where nothing is."""
    inputs = [arm.request["effective_token_ids_sha256"] for arm in incident.arms()]
    if None in inputs or inputs[0] != inputs[1]:
        return None
    return next((found for pair in incident.token_pairs() if (found := unsound(*pair))), None)


def _ulps_apart(ours: float, theirs: float) -> float:
    return in_ulps(ours - theirs, max(abs(ours), abs(theirs)), "bfloat16") or 0.0
