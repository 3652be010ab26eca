"""Incident → findings → graded chain, verdicts, gaps: makes the one object that every report reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from forensics import chain, detectors
from forensics.completeness import losses, lost
from forensics.consequence import consequence, spread
from forensics.counterfactual import counterfactuals
from forensics.coverage import coverage, record_first
from forensics.exhibits import exhibits
from forensics.explanation import Covered, Explanation, Subject
from forensics.feedback import loops_of
from forensics.filed import Filed, filed
from forensics.findings import Finding, Gap
from forensics.history import history
from forensics.incident import Incident, assemble
from forensics.inputs import inputs
from forensics.lane import lane
from forensics.plan_table import plan_table
from forensics.registry import members
from forensics.timeline import Thresholds
from forensics.wording import cannot_claim, headline, next_commands, root_code

if TYPE_CHECKING:
    from forensics.evidence import Evidence
    from forensics.store import Store

IN_LOST_RECORDS = {
    "batch_recomposition": "who else shared the launches",
    "preemption_recompute": "whether the request was preempted and recomputed",
    "paging": "whether KV was evicted, offloaded or recomputed",
    "algorithm_change": "which algorithms ran",
    "kernel_fallback": "whether a step fell back to another kernel",
    "precision_path_change": "which precision path ran",
    "requantization": "whether a step dequantised and requantised",
    "graph_mode_change": "whether a step left its graph",
}
"""Code → what cannot be told, where records of the request's own time are lost."""
X_PARTS = ("effective_token_ids_sha256", "decode_cfg_applied")


def explain(store: Store, req_id: str, against: str | None = None, limits: Thresholds | None = None) -> Explanation:
    """Explain one request. Raises ForensicsError for an id that is unknown or ambiguous."""
    return _explained(store, assemble(store, req_id, against, limits or Thresholds()))


def explain_with_spread(store: Store, req_id: str, against: str | None, limits: Thresholds) -> Explanation:
    """Explain one request, and count the divergent requests of the whole store."""
    incident = assemble(store, req_id, against, limits)
    return replace(_explained(store, incident), spread=spread(store, incident, limits))


def _explained(store: Store, incident: Incident) -> Explanation:
    verdicts = _verdicts(store, incident)
    incident = replace(incident, verdicts=tuple(verdicts))
    seen = {name: module.SEEN for name, module in members(detectors).items()}
    findings, gaps = _detect(incident) if incident.standing == "divergence" else ([], _why_undecided(incident))
    gaps += _lost(store, incident, findings)
    if incident.standing == "divergence":
        incident = replace(incident, counterfactuals=counterfactuals(store, incident, findings))
    table = plan_table(incident)
    links = chain.link(findings, gaps, incident, table)
    for verdict in verdicts:
        links = chain.prove(links, verdict)
    roots = chain.root_causes(findings, links)
    way = chain.path(roots[0].code, links) if roots else []
    found = {finding.code for finding in findings} | {gap.code for gap in gaps}
    arms = [incident.target] + ([incident.reference] if incident.reference else [])
    fields, first = _coverage(arms)
    ordered = tuple(sorted(findings, key=lambda finding: (finding.rung, finding.onset)))
    return Explanation(
        standing=incident.standing,
        headline=headline(incident, findings, way, roots, verdicts),
        target=_subject(incident.target),
        reference=_subject(incident.reference) if incident.reference else None,
        rule=incident.rule,
        cohorts=incident.cohorts,
        x_digest=incident.target.x_digest(),
        inputs=inputs(incident, findings),
        flip=incident.flip,
        consequence=consequence(incident),
        lanes=tuple(lane(name, arm) for name, arm in zip(("target", "reference"), arms, strict=False)),
        history=history(store, incident),
        findings=ordered,
        links=tuple(links),
        chain=tuple(way),
        chain_grade=chain.grade(way),
        root_cause=root_code(incident, roots),
        ruled_out=tuple(sorted(seen.keys() - found)) if incident.standing == "divergence" else (),
        gaps=tuple(gaps),
        coverage=fields,
        record_first=first,
        plan_table=table,
        verdicts=tuple(verdicts),
        exhibits=exhibits(arms, [one for finding in ordered for one in finding.citations]),
        cannot_claim=cannot_claim(incident, way, gaps, verdicts, seen),
        next_commands=next_commands(incident, verdicts),
        seen=seen,
        counterfactuals=incident.counterfactuals,
        loops=loops_of(store, incident.target, incident.flip.target_step if incident.flip else None),
        fabric=dict(zip(("target", "reference"), incident.fabric, strict=True)) if incident.reference else {},
    )


def _detect(incident: Incident) -> tuple[list[Finding], list[Gap]]:
    found = [one for module in members(detectors).values() for one in module.detect(incident)]
    findings = [one for one in found if isinstance(one, Finding)]
    return findings, [one for one in found if isinstance(one, Gap)]


def _lost(store: Store, incident: Incident, findings: list[Finding]) -> list[Gap]:
    """Return what lost records keep us from ruling out: what they may have said, no silence of a detector denies."""
    if incident.standing != "divergence":
        return []
    known, found = losses(store), []
    for arm, lived in zip(incident.arms(), incident.lived(), strict=True):
        steps = lived["engine_step"].drop_nulls().to_list()
        run_id, replica_id, _ = arm.identity
        for loss in lost(known, run_id, replica_id, min(steps), max(steps)) if steps else ():
            for code, stops in IN_LOST_RECORDS.items():
                if code not in {finding.code for finding in findings}:
                    found.append(Gap(code, f"what was in {loss.told()}", stops))
    return found


def _why_undecided(incident: Incident) -> list[Gap]:
    """Return the fields without which the comparison could not even begin."""
    if incident.standing == "outputs_unknown":
        missing = "request.output_token_ids_sha256, or step.token_id or step.token_tag of every token"
        return [Gap("token_flip", missing, "whether the two outputs differ")]
    if incident.standing == "no_reference":
        lacking = [name for name in X_PARTS if incident.target.request[name] is None]
        lacking += [] if incident.target.model_identity() else ["engine.weights_sha256 or engine.model_id"]
        return [Gap("effective_request_drift", name, "which other runs had the same x") for name in lacking]
    return []


def _verdicts(store: Store, incident: Incident) -> list[Filed]:
    """Return filed verdicts on this pair, whichever of the two was the incident; others do not carry over."""
    ours = incident.target.identity[0], incident.target.identity[2]
    found = _filed(store, ours)
    if incident.reference is not None:
        theirs = incident.reference.identity[0], incident.reference.identity[2]
        found = [one for one in found if one.reference in (None, theirs)]
        found += [one for one in _filed(store, theirs) if one.reference == ours]
    return list({(one.outcome, one.claim): one for one in found}.values())  # a repeated proof is one proof


def _filed(store: Store, of: tuple[str, str]) -> list[Filed]:
    return [filed(row) for row in store.ask("verdicts", run_id=of[0], req_id=of[1]).to_dicts()]


def _coverage(arms: list[Evidence]) -> tuple[tuple[Covered, ...], tuple[str, ...]]:
    """Return every field of the contract with both arms' shares, and the fields to record first."""
    ours, *rest = [coverage(arm) for arm in arms]
    theirs = [field.share for field in rest[0]] if rest else [None] * len(ours)
    fields = [Covered(one.full_name, one.share, share, one.stops) for one, share in zip(ours, theirs, strict=True)]
    first = record_first([one for pair in zip(ours, *rest, strict=True) for one in [min(pair, key=lambda f: f.share)]])
    return tuple(fields), tuple(one.full_name for one in first)


def _subject(arm: Evidence) -> Subject:
    request, engine = arm.request, arm.engine or {}
    named: dict[str, Any] = {
        name: request[name] for name in ("req_id", "external_req_id", "run_id", "replica_id", "arrival_ts")
    }
    named |= {name: engine.get(name) for name in ("engine", "engine_version", "model_id", "dtype", "weights_sha256")}
    return Subject(
        **named,
        output_tokens=request["output_tokens"] or arm.tokens().height or None,
        finish_reason=request["finish_reason"],
        max_rows=arm.steps["batch_size"].max(),  # type: ignore[arg-type]
        max_launch_tokens=arm.steps["batch_tokens"].max(),  # type: ignore[arg-type]
        citation=arm.cite()[0],
    )
