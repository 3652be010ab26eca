"""The sentences of an explanation: the headline, what cannot be claimed, and what to run next."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from forensics import chain
from forensics.causes import CAUSES
from forensics.findings import Rung
from forensics.flip import same_bits
from forensics.text import command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.filed import Filed
    from forensics.findings import Finding, Gap, Link
    from forensics.flip import Flip
    from forensics.incident import Incident

REPLAYED = ("transformers",)
"""Engines that this version's replay executes."""
MOST_NAMED = 3
STOPPED = "(stopped)"
GRADED = {
    "proven": "proven", "supported": "supported, not proven", "consistent": "consistent with the log, not proven",
    "possible": "possible, no more", "refuted": "refuted",
}  # fmt: skip


def root_code(incident: Incident, roots: Sequence[Finding]) -> str:
    """Return the cause code of the root, 'none' where nothing diverged, 'undetermined' where the log cannot tell."""
    if incident.standing in ("same", "cut_short", "sampled"):
        return "none"
    if not roots or (roots[0].rung >= Rung.NUMERICS and roots[0].code in CAUSES):  # drift is an effect, never a root
        return "undetermined"
    return roots[0].code


def headline(
    incident: Incident,
    findings: Sequence[Finding],
    way: Sequence[Link],
    roots: Sequence[Finding],
    filed: Sequence[Filed],
) -> str:
    """Return the answer in two sentences: token, margin, what pushed it, plan difference, and the grade."""
    if incident.standing != "divergence":
        return {
            "same": f"No divergence: both runs gave the same output.{_silent_drift(incident)}",
            "cut_short": "No divergence: one output is the beginning of the other, cut short by a limit or an abort.",
            "sampled": "No incident: sampled at a temperature above 0 without a seed; different outputs are expected.",
            "no_reference": f"Nothing to compare with: no other run of this request is on record.{_synthetic(filed)}",
            "outputs_unknown": "Cannot tell: the outputs of the two runs are not on record in a form that compares.",
        }[incident.standing]
    parted = (
        "The outputs differ, at a position that is not on record."
        if incident.flip is None
        else _flip(incident.flip, _rounding(incident))
    )
    if root_code(incident, roots) == "undetermined":
        return f"{parted} The log does not determine why."
    return f"{parted} {_cause(roots[0], findings, way)}; {_graded(way, filed)}."


def _cause(root: Finding, findings: Sequence[Finding], way: Sequence[Link]) -> str:
    """Return what the root did, then with whom launches were shared and in which shape, where that is on the way."""
    on_way = {link.effect for link in way}
    by_code = {finding.code: finding for finding in findings if finding.code in on_way and finding is not root}
    said = [_pushed(root)]
    if "batch_recomposition" in by_code:
        said.append(f"the request {_shared(by_code['batch_recomposition'])}")
    if "shape_class_change" in by_code:
        said.append(f"launches had {_shapes(by_code['shape_class_change'])}")
    return ", so ".join([said[0], " and ".join(said[1:])]) if said[1:] else said[0]


def _rounding(incident: Incident) -> tuple[str, str]:
    """Return what to add to a tie and to a clear gap: rounding is named only where it can have decided."""
    inputs = {arm.request["effective_token_ids_sha256"] for arm in incident.arms()}
    if len(inputs) > 1:
        return "", ""
    if incident.flip is not None and incident.flip.from_logits is False:
        return ", but the logits do not account for both tokens", ", and the logits do not account for both tokens"
    return ", within reach of rounding", ", more than rounding explains"


def _flip(flip: Flip, rounding: tuple[str, str]) -> str:
    if flip.target_token == STOPPED:
        parted = f"Token {flip.token_index}: the answer ends where the reference goes on with {flip.reference_token}"
    elif flip.reference_token == STOPPED:
        parted = f"Token {flip.token_index}: the answer goes on with {flip.target_token} where the reference ends"
    else:
        parted = f"Token {flip.token_index} is {flip.target_token} instead of {flip.reference_token}"
    ends = STOPPED in (flip.target_token, flip.reference_token)
    return f"{parted}{'; ' if ends else ': '}{_closeness(flip, rounding)}."


def _closeness(flip: Flip, rounding: tuple[str, str]) -> str:
    gaps = [abs(gap) for gap in (flip.target_gap, flip.reference_gap) if gap is not None]
    dtype = flip.dtype or "an unknown dtype"
    if flip.tie is None or not gaps:
        return "how close the two candidates were is not on record"
    if flip.tie == "exact tie":
        return f"an exact tie in {dtype}{rounding[0]}"
    ulps = "" if flip.gap_ulps is None else f" ({flip.gap_ulps:.3g} ulp)"
    apart = f"{min(gaps):.4g} logits apart in {dtype}{ulps}"
    return apart + rounding[flip.tie == "clear"]


def _pushed(root: Finding) -> str:
    """Return what the root cause did, as a sentence without its full stop."""
    if root.code == "batch_recomposition":
        return f"The request {_shared(root)}"
    if root.code == "shape_class_change":
        return f"The launches had {_shapes(root)}"
    if root.code == "environment_change" and isinstance(root.target, dict) and isinstance(root.reference, dict):
        return f"The environment differs ({_named(root.target, root.reference)})"
    says = root.says.partition("; ")[0]
    return says[:1].upper() + says[1:]


def _named(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return the first settings that differ, and how many more there are: the findings list them all."""
    shown = [f"{name} {ours[name]!r} against {theirs.get(name)!r}" for name in list(ours)[:MOST_NAMED]]
    more = len(ours) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _shared(batch: Finding) -> str:
    """Return with whom the launches were shared at the first difference; target and reference are token counts."""
    if not isinstance(batch.target, list) or not isinstance(batch.reference, list):
        return "shared its launches with others than the reference did"
    ours, theirs = len(batch.target), len(batch.reference)
    if not theirs:
        return f"shared its launches with {ours} other{'s' * (ours != 1)} instead of running alone"
    if not ours:
        return f"ran alone instead of sharing its launches with {theirs} other{'s' * (theirs != 1)}"
    tokens = f"({sum(batch.target)} tokens) instead of {theirs} ({sum(batch.reference)} tokens)"
    return f"shared its launches with {ours} other{'s' * (ours != 1)} {tokens}"


def _shapes(plan: Finding) -> str:
    shapes = [re.match(r"tokens=(\d+) rows=(\d+) ", str(value)) for value in (plan.target, plan.reference)]
    if not all(shapes):
        return "another shape"
    (ours, theirs) = (
        f"{shape[1]} token{'s' * (shape[1] != '1')} in {shape[2]} row{'s' * (shape[2] != '1')}"
        for shape in shapes
        if shape
    )
    return f"{ours} instead of {theirs}"


def _graded(way: Sequence[Link], filed: Sequence[Filed]) -> str:
    grade = chain.grade(way)
    proof = next((verdict for verdict in filed if verdict.proves), None)
    if proof is not None and grade != "proven":
        names = ", ".join(factor.partition(" (")[0] for factor in proof.factors)
        return f"replay proves that {names} carries the flip, what is below is {grade}"
    return GRADED.get(str(grade), "not graded")


def _synthetic(filed: Sequence[Filed]) -> str:
    verdict = next((one for one in filed if one.synthetic), None)
    return (
        "" if verdict is None else f" Replay ran it alone as a synthetic reference: {verdict.outcome}, {verdict.claim}."
    )


def _silent_drift(incident: Incident) -> str:
    """Return what to add where the tokens are the same and the logits are not: the arithmetic differed all the same."""
    pairs = [(ours, same_bits(ours, theirs)) for ours, theirs in incident.token_pairs()] if incident.reference else []
    drifted = [ours["token_index"] for ours, equal in pairs if equal is False]
    if not drifted:
        return " Their recorded logits are equal bit for bit." if pairs and all(equal for _, equal in pairs) else ""
    return (
        f" The logits differ from output token {drifted[0]} on, in {len(drifted)} of {len(pairs)} tokens; none flipped."
    )


def cannot_claim(
    incident: Incident, way: Sequence[Link], gaps: Sequence[Gap], filed: Sequence[Filed], seen: dict[str, str]
) -> tuple[str, ...]:
    """Return what the explanation does not show: one claim a gap first, in the order of the gaps."""
    claims = [f"{gap.stops}: {gap.field} is not on record" for gap in gaps]
    on_way = {code for one in way for code in (one.cause, one.effect)}
    for arm in (incident.target, incident.reference):
        if arm is not None and arm.request["contradicted"]:
            fields = ", ".join(arm.request["contradicted"])
            claims.append(f"which of two statements about {fields} of {arm.name} is right: its records contradict")
    if incident.standing == "divergence":
        proven = any(verdict.proves for verdict in filed)
        if not proven:
            claims.append("that the plan carries the flip: no verdict on file proves it")
        if not any(verdict.arbitrated for verdict in filed):
            claims.append("which output is right")
        if proven and way:
            claims.append("what lies below the plan is not covered by the verdict: it rests on the log, as graded")
    if "batch_recomposition" in on_way:
        claims.append("that these neighbours matter: a launch of the same shape may do the same")
    if any(verdict.synthetic for verdict in filed):
        claims.append("that production ever gave the reference's answer: a verdict's reference is synthetic")
    made_up = sorted(code for code in on_way if seen.get(code) == "simulated only")
    if made_up:
        claims.append(f"that {', '.join(made_up)} is told apart reliably: seen on made-up logs only so far")
    return tuple(claims)


def next_commands(incident: Incident, filed: Sequence[Filed]) -> tuple[str, ...]:
    """Return what to run next, to be pasted as it stands."""
    request, reference = incident.target.request, incident.reference
    against = [f"--against={reference.request['req_id']}"] if incident.named and reference else []

    def say(*words: str) -> str:
        return command(*words, *against, request=request["req_id"])

    if incident.standing not in ("divergence", "no_reference", "outputs_unknown"):
        return ()
    can_replay = request["effective_token_ids"] is not None and (incident.target.engine or {}).get("engine") in REPLAYED
    if incident.standing == "outputs_unknown" or (incident.standing == "no_reference" and not can_replay):
        return (command("contract", request=request["req_id"]),)
    if any(verdict.proves for verdict in filed):
        return (say("export", "-o", "review.md"),)
    if can_replay:
        return say("replay"), say("export", "-o", "review.md")
    if request["effective_token_ids"] is None:
        return command("contract", request=request["req_id"]), say("export", "-o", "review.md")
    return say("case", "-o", "case.json"), say("export", "-o", "review.md")
