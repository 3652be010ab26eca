"""Whether two outputs of the same request differ, at which token, and how close it was there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from forensics.margin import in_ulps, tie_class

if TYPE_CHECKING:
    from forensics.evidence import Evidence

Standing = Literal["divergence", "same", "cut_short", "sampled", "no_reference", "outputs_unknown"]


@dataclass(frozen=True)
class Flip:
    """The first output token that differs, and how close it was in each arm.

    margin: top-1 minus top-2 raw logit, whichever tokens these are. gap: the arm's own token minus the other arm's
    token, None unless both are among the recorded top: only a gap tells how far the flip was. drift: how far the two
    candidates moved against each other between the arms. gap_ulps: the smaller gap of the two arms. ulps are in the
    logit dtype.
    from_logits: both tokens are the highest raw logit of their arm, and the logits differ, or one arm's are not finite;
    None: not on record.
    """

    token_index: int
    target_step: int | None
    reference_step: int | None
    target_token: str
    reference_token: str
    target_margin: float | None = None
    reference_margin: float | None = None
    target_ulps: float | None = None
    reference_ulps: float | None = None
    target_gap: float | None = None
    reference_gap: float | None = None
    dtype: str | None = None
    drift: float | None = None
    gap_ulps: float | None = None
    tie: str | None = None
    from_logits: bool | None = None


def compare_outputs(target: Evidence, reference: Evidence) -> tuple[Standing, int | None]:
    """Return whether the outputs differ, and the first position that does where tokens or tags allow it."""
    for evidence in (target, reference):
        temperature = evidence.decode_cfg().get("temperature")
        if isinstance(temperature, int | float) and temperature > 0 and evidence.decode_cfg().get("seed") is None:
            return "sampled", None
    ours, theirs = outputs(target), outputs(reference)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        hashes = (target.request["output_token_ids_sha256"], reference.request["output_token_ids_sha256"])
        if None in hashes:
            return "outputs_unknown", None
        return ("same" if hashes[0] == hashes[1] else "divergence"), None
    for index, (one, other) in enumerate(zip(ours[1], theirs[1], strict=False)):
        if one != other:
            return "divergence", index
    length, others = len(ours[1]), len(theirs[1])
    if length == others:
        return "same", None
    shorter = target if length < others else reference
    if shorter.request["finish_reason"] == "stop" or shorter.request["stop_reason"] is not None:
        return "divergence", min(length, others)
    return "cut_short", None


def outputs(evidence: Evidence) -> tuple[str, tuple[Any, ...]] | None:
    """Return (namespace, output tokens): ids where they are on record, else tags under the name of their key."""
    ids = evidence.request["output_token_ids"]
    if ids is not None:
        return "ids", tuple(ids)
    tokens = evidence.tokens()
    if tokens.is_empty() or tokens["token_index"].to_list() != list(range(tokens.height)):
        return None
    if tokens["token_id"].null_count() == 0:
        return "ids", tuple(tokens["token_id"])
    key = (evidence.engine or {}).get("token_tag_key_id")
    if key is not None and tokens["token_tag"].null_count() == 0:
        return f"tags under key {key}", tuple(tokens["token_tag"])
    return None


def flip_at(target: Evidence, reference: Evidence, index: int) -> Flip:
    """Return what is on record of both arms at the output position where they part."""
    ours, theirs = _at(target, index), _at(reference, index)
    tokens = {"target_token": _token(target, ours, index), "reference_token": _token(reference, theirs, index)}
    steps = {"target_step": (ours or {}).get("step"), "reference_step": (theirs or {}).get("step")}
    if ours is None or theirs is None:
        return Flip(index, **steps, **tokens)  # type: ignore[arg-type]
    own, other = _gap(ours, theirs), _gap(theirs, ours)
    known = [(abs(gap), row) for gap, row in ((own, ours), (other, theirs)) if gap is not None]
    tie = ulps = None
    if known:
        gap, row = min(known, key=lambda pair: pair[0])
        ulps = _ulps(row, gap)
        tie = tie_class(gap, ulps)
    margins = [_margin(row) for row in (ours, theirs)]
    return Flip(
        index, **steps, **tokens,  # type: ignore[arg-type]
        target_margin=margins[0], reference_margin=margins[1],
        target_ulps=_ulps(ours, margins[0]), reference_ulps=_ulps(theirs, margins[1]),
        target_gap=own, reference_gap=other,
        dtype=ours["logit_dtype"] or theirs["logit_dtype"],
        drift=None if own is None or other is None else own + other,
        gap_ulps=ulps, tie=tie, from_logits=_from_logits(ours, theirs),
    )  # fmt: skip


def _at(evidence: Evidence, index: int) -> dict[str, Any] | None:
    rows = evidence.tokens().filter(pl.col("token_index") == index).to_dicts()
    return rows[0] if rows else None


def _margin(row: dict[str, Any]) -> float | None:
    logits, margin = row["top_logits"], row["margin"]
    if margin is None and logits is not None and len(logits) >= 2:
        margin = logits[0] - logits[1]
    return margin if margin is None else float(margin)


def _ulps(row: dict[str, Any], difference: float | None) -> float | None:
    if difference is None or not row["top_logits"]:
        return None
    return in_ulps(difference, row["top_logits"][0], row["logit_dtype"])


def logit_table(row: dict[str, Any]) -> dict[Any, float]:
    """Return {token: raw logit} of the recorded top of a step, tokens by id, or by tag where no ids are on record."""
    return _table(row)[1]


def _table(row: dict[str, Any]) -> tuple[str, dict[Any, float]]:
    """Return the name of the field that names this step's token, and {token: raw logit} of the recorded top."""
    names, own = ("top_token_ids", "token_id") if row["top_token_ids"] else ("top_token_tags", "token_tag")
    return own, dict(zip(row[names] or (), row["top_logits"] or (), strict=False))


def _gap(row: dict[str, Any], other: dict[str, Any]) -> float | None:
    """Return the logit of this arm's token minus that of the other arm's, as this arm had them."""
    own, table = _table(row)
    one, rival = row[own], other[own]
    return table[one] - table[rival] if one in table and rival in table else None


def _from_logits(ours: dict[str, Any], theirs: dict[str, Any]) -> bool | None:
    if same_bits(ours, theirs) is None:
        return None
    if same_bits(ours, theirs):
        return False  # equal logits: whatever chose another token, it was not they
    if ours["nonfinite_logits"] or theirs["nonfinite_logits"]:
        return True  # what is chosen from a NaN is anybody's guess, and it came from there
    for row in (ours, theirs):
        own, table = _table(row)
        if not table or row[own] is None:
            return None
        if table.get(row[own]) != max(table.values()):
            return False  # a processor or a sampler chose it
    return True


def _token(evidence: Evidence, row: dict[str, Any] | None, index: int) -> str:
    found = outputs(evidence)
    if found is not None and index >= len(found[1]):
        return "(stopped)"
    if row is not None and row.get("token_text"):
        return repr(row["token_text"])
    return "?" if found is None else str(found[1][index])


def same_bits(ours: dict[str, Any], theirs: dict[str, Any]) -> bool | None:
    """Return whether two token steps had the same logits, as far as the record tells; None when it does not."""
    if ours["logits_sha256"] and theirs["logits_sha256"]:
        return bool(ours["logits_sha256"] == theirs["logits_sha256"])
    if bool(ours["nonfinite_logits"]) != bool(theirs["nonfinite_logits"]):
        return False
    if not ours["top_logits"] or not theirs["top_logits"]:
        return None
    shared = min(len(ours["top_logits"]), len(theirs["top_logits"]))
    for names in ("top_token_ids", "top_token_tags"):
        if ours[names] and theirs[names] and list(ours[names][:shared]) != list(theirs[names][:shared]):
            return False
    return list(ours["top_logits"][:shared]) == list(theirs["top_logits"][:shared])
