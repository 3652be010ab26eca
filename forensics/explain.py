"""Explanation: the one object that every report reads. Incident → findings → graded chain, verdicts, gaps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from forensics import chain, detectors
from forensics.filed import Filed, filed
from forensics.findings import Citation, Finding, Gap, Grade, Link, Rung
from forensics.flip import same_bits
from forensics.incident import Incident, assemble
from forensics.lane import Lane, lane
from forensics.plan_table import PlanTable, plan_table
from forensics.registry import members
from forensics.text import command
from forensics.timeline import Thresholds

if TYPE_CHECKING:
    from forensics.evidence import Evidence
    from forensics.flip import Flip, Standing
    from forensics.store import Store

FORMAT = "forensics.explanation/1"
X_PARTS = ("effective_token_ids_sha256", "decode_cfg_applied")
REPLAYED = ("transformers",)
"""Engines that this version's replay executes."""
EXIT = {"divergence": 1, "same": 0, "cut_short": 0, "sampled": 0, "no_reference": 4, "outputs_unknown": 4}


@dataclass(frozen=True)
class Subject:
    """One arm as a report names it."""

    req_id: str
    external_req_id: str | None
    run_id: str
    replica_id: str
    arrival_ts: float | None
    engine: str | None
    engine_version: str | None
    model_id: str | None
    dtype: str | None
    weights_sha256: str | None
    output_tokens: int | None
    finish_reason: str | None
    max_rows: int | None
    max_launch_tokens: int | None
    citation: Citation


@dataclass(frozen=True)
class Explanation:
    """What happened to one request, how each statement is known, and what is missing.

    root_cause: a cause code, 'none' (nothing diverged) or 'undetermined'. chain: links from the root to the flip.
    """

    standing: Standing
    headline: str
    target: Subject
    reference: Subject | None
    rule: str
    x_digest: str | None
    flip: Flip | None
    lanes: tuple[Lane, ...]
    findings: tuple[Finding, ...]
    links: tuple[Link, ...]
    chain: tuple[Link, ...]
    chain_grade: Grade | None
    root_cause: str
    ruled_out: tuple[str, ...]
    gaps: tuple[Gap, ...]
    plan_table: PlanTable
    verdicts: tuple[Filed, ...]
    cannot_claim: tuple[str, ...]
    next_commands: tuple[str, ...]
    seen: dict[str, str]
    format: str = FORMAT

    @property
    def exit_code(self) -> int:
        """Return 0 for no divergence, 1 for one, 4 where the log cannot tell."""
        return EXIT[self.standing]

    def finding(self, code: str) -> Finding | None:
        """Return the finding of that code, if there is one."""
        return next((finding for finding in self.findings if finding.code == code), None)

    def document(self) -> dict[str, Any]:
        """Return the document form (schemas/explanation.v1.json)."""
        document = asdict(self)
        for finding, entry in zip(self.findings, document["findings"], strict=True):
            entry["rung"] = finding.rung.name.lower()
        return document


def explain(store: Store, req_id: str, against: str | None = None, limits: Thresholds | None = None) -> Explanation:
    """Explain one request. Raises ForensicsError for an id that is unknown or ambiguous."""
    incident = assemble(store, req_id, against, limits or Thresholds())
    verdicts = _verdicts(store, incident)
    seen = {name: module.SEEN for name, module in members(detectors).items()}
    findings, gaps = _detect(incident) if incident.standing == "divergence" else ([], _why_undecided(incident))
    table = plan_table(incident)
    links = chain.link(findings, gaps, incident, table)
    for verdict in verdicts:
        links = chain.prove(links, verdict)
    roots = chain.root_causes(findings, links)
    way = chain.path(roots[0].code, links) if roots else []
    found = {finding.code for finding in findings} | {gap.code for gap in gaps}
    return Explanation(
        standing=incident.standing,
        headline=_headline(incident, findings, way, roots),
        target=_subject(incident.target),
        reference=_subject(incident.reference) if incident.reference else None,
        rule=incident.rule,
        x_digest=incident.target.x_digest(),
        flip=incident.flip,
        lanes=tuple(lane(name, arm) for name, arm in _arms(incident)),
        findings=tuple(sorted(findings, key=lambda finding: (finding.rung, finding.onset))),
        links=tuple(links),
        chain=tuple(way),
        chain_grade=chain.grade(way),
        root_cause=_root(incident, roots),
        ruled_out=tuple(sorted(seen.keys() - found)) if incident.standing == "divergence" else (),
        gaps=tuple(gaps),
        plan_table=table,
        verdicts=tuple(verdicts),
        cannot_claim=_cannot_claim(incident, way, gaps, verdicts),
        next_commands=_next(incident, verdicts),
        seen=seen,
    )


def _arms(incident: Incident) -> list[tuple[str, Evidence]]:
    target = [("target", incident.target)]
    return target + ([("reference", incident.reference)] if incident.reference else [])


def _detect(incident: Incident) -> tuple[list[Finding], list[Gap]]:
    found = [one for module in members(detectors).values() for one in module.detect(incident)]
    findings = [one for one in found if isinstance(one, Finding)]
    return findings, [one for one in found if isinstance(one, Gap)]


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


def _root(incident: Incident, roots: list[Finding]) -> str:
    if incident.standing in ("same", "cut_short", "sampled"):
        return "none"
    return roots[0].code if roots and roots[0].rung < Rung.NUMERICS else "undetermined"


def _headline(incident: Incident, findings: list[Finding], way: list[Link], roots: list[Finding]) -> str:
    if incident.standing != "divergence":
        return {
            "same": f"No divergence: both runs gave the same output.{_silent_drift(incident)}",
            "cut_short": "No divergence: one output is the beginning of the other, cut short by a limit or an abort.",
            "sampled": "No incident: sampled at a temperature above 0 without a seed; different outputs are expected.",
            "no_reference": "Nothing to compare with: no other run of this request is on record.",
            "outputs_unknown": "Cannot tell: the outputs of the two runs are not on record in a form that compares.",
        }[incident.standing]
    flip = next(finding for finding in findings if finding.code == "token_flip").says
    if _root(incident, roots) == "undetermined":
        return f"Divergence: {flip}. The log does not determine why."
    causes = " → ".join([way[0].cause, *(one.effect for one in way)])
    return f"Divergence: {flip}. {causes} (chain {chain.grade(way)})."


def _silent_drift(incident: Incident) -> str:
    """Return what to add where the tokens are the same and the logits are not: the arithmetic differed all the same."""
    pairs = [(ours, same_bits(ours, theirs)) for ours, theirs in incident.token_pairs()] if incident.reference else []
    drifted = [ours["token_index"] for ours, equal in pairs if equal is False]
    if not drifted:
        return " Their recorded logits are equal bit for bit." if pairs and all(equal for _, equal in pairs) else ""
    return (
        f" The logits differ from output token {drifted[0]} on, in {len(drifted)} of {len(pairs)} tokens; none flipped."
    )


def _cannot_claim(incident: Incident, way: list[Link], gaps: list[Gap], verdicts: list[Filed]) -> tuple[str, ...]:
    claims = [f"{gap.stops}: {gap.field} is not on record" for gap in gaps]
    if incident.standing == "divergence":
        proven = any(verdict.proves for verdict in verdicts)
        if not proven:
            claims.append("that the plan carries the flip: no verdict on file proves it")
        claims.append("which of the two outputs is the right one")
        if proven and way:
            claims.append("what lies below the plan is not covered by the verdict: it rests on the log, as graded")
    if any("batch_recomposition" in (one.cause, one.effect) for one in way):
        claims.append("that these neighbours in particular matter: a launch of the same shape may do the same")
    return tuple(claims)


def _next(incident: Incident, verdicts: list[Filed]) -> tuple[str, ...]:
    request, reference = incident.target.request, incident.reference
    against = [f"--against={reference.request['req_id']}"] if incident.named and reference else []

    def say(*words: str) -> str:
        return command(*words, *against, request=request["req_id"])

    if incident.standing not in ("divergence", "no_reference", "outputs_unknown"):
        return ()
    can_replay = request["effective_token_ids"] is not None and (incident.target.engine or {}).get("engine") in REPLAYED
    if incident.standing == "outputs_unknown" or (incident.standing == "no_reference" and not can_replay):
        return (command("contract", request=request["req_id"]),)
    if any(verdict.proves for verdict in verdicts):
        return (say("export", "-o", "review.md"),)
    if can_replay:
        return say("replay"), say("export", "-o", "review.md")
    if request["effective_token_ids"] is None:
        return command("contract", request=request["req_id"]), say("export", "-o", "review.md")
    return say("case", "-o", "case.json"), say("export", "-o", "review.md")
