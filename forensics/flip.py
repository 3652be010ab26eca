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

    margins are raw logits; ulps in the logit dtype. drift is the change of z_a - z_b between the arms, with a the
    target's token and b the reference's: a flip by drift needs |drift| >= the reference's margin.
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
    dtype: str | None = None
    drift: float | None = None

    @property
    def tie(self) -> str | None:
        """Return the class of the smaller margin: that arm was nearest to the other answer."""
        margins = [
            (margin, ulps)
            for margin, ulps in (
                (self.target_margin, self.target_ulps),
                (self.reference_margin, self.reference_ulps),
            )
            if margin is not None
        ]
        return tie_class(*min(margins, key=lambda pair: pair[0])) if margins else None


def compare_outputs(target: Evidence, reference: Evidence) -> tuple[Standing, int | None]:
    """Return whether the outputs differ, and the first position that does where tokens or tags allow it."""
    for evidence in (target, reference):
        cfg = evidence.decode_cfg()
        if float(cfg.get("temperature") or 0) > 0 and cfg.get("seed") is None:
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
    shorter, longer = sorted((target, reference), key=lambda evidence: len((outputs(evidence) or ("", ()))[1]))
    lengths = [len((outputs(evidence) or ("", ()))[1]) for evidence in (shorter, longer)]
    if lengths[0] == lengths[1]:
        return "same", None
    if shorter.request["finish_reason"] == "stop":
        return "divergence", lengths[0]
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
    ours, theirs = (_at(evidence, index) for evidence in (target, reference))
    names = ("top_token_ids", "token_id") if _both(ours, theirs, "top_token_ids") else ("top_token_tags", "token_tag")
    margins = [_margin(row) for row in (ours, theirs)]
    drift = None
    if ours and theirs:
        gaps = [_gap(row, names[0], ours.get(names[1]), theirs.get(names[1])) for row in (ours, theirs)]
        drift = gaps[0] - gaps[1] if gaps[0] is not None and gaps[1] is not None else None
    dtype = (ours or {}).get("logit_dtype") or (theirs or {}).get("logit_dtype")
    return Flip(
        token_index=index,
        target_step=(ours or {}).get("step"),
        reference_step=(theirs or {}).get("step"),
        target_token=_token(target, ours, index),
        reference_token=_token(reference, theirs, index),
        target_margin=margins[0][0], reference_margin=margins[1][0],
        target_ulps=margins[0][1], reference_ulps=margins[1][1],
        dtype=dtype, drift=drift,
    )  # fmt: skip


def _at(evidence: Evidence, index: int) -> dict[str, Any] | None:
    rows = evidence.tokens().filter(pl.col("token_index") == index).to_dicts()
    return rows[0] if rows else None


def _both(ours: dict[str, Any] | None, theirs: dict[str, Any] | None, name: str) -> bool:
    return bool(ours and theirs and ours.get(name) and theirs.get(name))


def _margin(row: dict[str, Any] | None) -> tuple[float | None, float | None]:
    if row is None:
        return None, None
    logits, margin = row["top_logits"], row["margin"]
    if margin is None and logits is not None and len(logits) >= 2:
        margin = logits[0] - logits[1]
    if margin is None:
        return None, None
    return margin, in_ulps(margin, logits[0], row["logit_dtype"]) if logits else None


def _gap(row: dict[str, Any], names: str, one: Any, other: Any) -> float | None:
    """Return z_one - z_other, None unless both tokens are among the recorded top."""
    table = dict(zip(row.get(names) or (), row.get("top_logits") or (), strict=False))
    return table[one] - table[other] if one in table and other in table else None


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
    if not ours["top_logits"] or not theirs["top_logits"]:
        return None
    shared = min(len(ours["top_logits"]), len(theirs["top_logits"]))
    for names in ("top_token_ids", "top_token_tags"):
        if ours[names] and theirs[names] and list(ours[names][:shared]) != list(theirs[names][:shared]):
            return False
    return list(ours["top_logits"][:shared]) == list(theirs["top_logits"][:shared])
