"""Logits that no legal arithmetic gives: not numbers, or far from where the same input puts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.contrast import differences, factors
from forensics.findings import Finding, Gap, Rung
from forensics.flip import same_bits
from forensics.soundness import known, unsound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.NUMERICS
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Look, token by token up to the flip, for logits that are NaN or infinite, or 100 ulp from the other arm's.

    In one arm alone: `nonfinite_logits` above 0; or the highest logit, or one token's, moved so far. That is called
    corruption only where everything legal that moves logits so far is excluded by the record: the effective input is
    the same, the weights are (same hash, or one run), no adapter differs, and no precision path or dtype does. With one
    of these not on record it is a gap; with one that differs, it is no corruption.

    It begins where the bits of the two arms part, since a wrong value need not show at once. Where it came from is not
    told (weights, KV, activations, memory). Competitors: weights exchanged in memory, a cached prefix of another
    prompt, a defect in a kernel; only a replay on other hardware tells them apart.
    """
    pairs = incident.token_pairs()
    signs = [(one, other, sign) for one, other in pairs if (sign := unsound(one, other))]
    if not any(known(one) and known(other) for one, other in pairs):
        yield Gap("corruption", "step.top_logits", "whether the logits were sound")
        return
    if not signs or _differs(incident):
        return
    if missing := _unknown(incident):
        yield Gap("corruption", missing, "whether the unsound logits have a legal cause")
        return
    one, other, sign = signs[0]
    onset = next(row["step"] for row, theirs in pairs if row is one or same_bits(row, theirs) is False)
    target, reference = incident.arms()
    yield Finding(
        "corruption", RUNG,
        f"{sign}, in {len(signs)} of {len(pairs)} tokens up to the flip, though input, weights and precision on record "
        "are the same: a value was wrong, not rounded otherwise",
        onset, _value(one), _value(other), how="inferred", steps=tuple(row["step"] for row, *_ in signs),
        citations=target.cite(one["step"]) + reference.cite(other["step"]),
    )  # fmt: skip


def _value(row: Facts) -> Any:
    return f"{row['nonfinite_logits']} not finite" if row["nonfinite_logits"] else row["top_logits"][0]


def _differs(incident: Incident) -> str:
    """Return what differs that may legally move logits so far, '' where nothing on record does."""
    facts = []
    for arm in incident.arms():
        request, engine = arm.request, arm.engine or {}
        said = {
            "input": request["effective_token_ids_sha256"], "weights": engine.get("weights_sha256"),
            "adapter": str(arm.decode_cfg().get("lora")), "dtype": engine.get("dtype"),
            "quantization": engine.get("quantization"),
        }  # fmt: skip
        facts.append({name: value for name, value in said.items() if value is not None})
    paths = (differences(_precision(one), _precision(other)) for _, one, other in incident.paired() if one and other)
    return differences(*facts) or next((path for path in paths if path), "")


def _precision(row: Facts) -> Facts:
    stated = {} if row["precision_path"] is None else {"precision_path": row["precision_path"]}
    return stated | {name: value for name, value in factors(row).items() if name.startswith(("dtype.", "quant."))}


def _unknown(incident: Incident) -> str | None:
    """Return the field that is missing to exclude another input or other weights."""
    target, reference = incident.arms()
    if None in (arm.request["effective_token_ids_sha256"] for arm in (target, reference)):
        return "request.effective_token_ids_sha256"
    if target.identity[:2] == reference.identity[:2] and target.identity[0]:
        return None
    hashes = [(arm.engine or {}).get("weights_sha256") for arm in (target, reference)]
    return "engine.weights_sha256" if None in hashes else None
