"""What the review rests on: the cited records, what of the contract is on record, and the replay verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.markup import bullets, fenced, table
from forensics.text import code, markdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.explanation import Explanation

SHOWN = 30
"""Cited records that are printed; the rest stands in the log."""


def evidence(explanation: Explanation) -> Iterator[str]:
    """The cited records with their key fields, and where the files are."""
    yield "## Evidence"
    sources = explanation.sources
    yield bullets(f"{code(name)} is {code(path)}" for path, name in sources.items())
    rows = [
        [
            code(f"{sources[one.citation.path]}:{one.citation.line}"), one.kind,
            ", ".join(code(f"{name}={value}", 120) for name, value in one.fields.items()),
        ]
        for one in explanation.exhibits[:SHOWN]
    ]  # fmt: skip
    if rows:
        yield table(["record", "kind", "key fields"], rows)
    if len(explanation.exhibits) > SHOWN:
        yield f"{len(explanation.exhibits) - SHOWN} more records are cited."


def contract(explanation: Explanation) -> Iterator[str]:
    """What of the execution contract is on record in each arm, and what each missing field stops."""
    yield "## Contract completeness"
    fields = explanation.coverage
    whole = [one for one in fields if (one.target, one.reference) in ((1, 1), (1, None))]
    yield f"{len(whole)} of {len(fields)} fields that claims rest on are on record in every row of both arms."

    def share(value: float | None) -> str:
        return (
            "-" if value is None else "missing" if value == 0 else "on record" if value == 1 else f"{value:.0%} of rows"
        )

    rows = [[code(one.field), share(one.target), share(one.reference), one.stops] for one in fields if one not in whole]
    if rows:
        yield table(["field", "target", "reference", "without it we cannot tell"], rows)
    if explanation.record_first:
        yield f"Record these first: {', '.join(code(name) for name in explanation.record_first)}."
    yield "Complete: " + (", ".join(code(one.field) for one in whole) or "none") + "."


def proof(explanation: Explanation) -> Iterator[str]:
    """The replay verdicts on file, or how to get one."""
    yield "## Proof"
    if explanation.proof is None:
        yield "**Nothing here is proven**: no verdict on file exchanges the results of the two arms bit for bit."
        replays = [one for one in explanation.next_commands if one.startswith(("forensics replay ", "forensics case "))]
        if replays and replays[0].startswith("forensics replay"):
            yield "To get a proof, on a machine like the one that recorded this, with the same weights and libraries:"
            yield fenced(replays, "sh")
        elif replays:
            engine = markdown(explanation.target.engine or "an engine that is not on record")
            yield f"This version's replay does not execute {engine}. What one needs is on record, and goes into a case:"
            yield fenced(replays, "sh")
        elif explanation.standing == "divergence":
            yield "A replay needs the token ids of the request (`--with-ids` when recording): they are not on record."
    for verdict in explanation.verdicts:
        yield f"### Verdict: {code(verdict.outcome)}"
        yield f"{markdown(verdict.claim, 1500)}. Evidence: {code(verdict.source_path)}."
        if verdict.synthetic:
            yield "Its reference is **synthetic**: replay ran the request alone; nobody recorded that run."
        if verdict.factors:
            yield f"Factors, incident against reference: {', '.join(code(factor) for factor in verdict.factors)}."
        if verdict.findings:
            yield bullets(markdown(one, 600) for one in verdict.findings)
        if verdict.null:
            yield f"Null: {markdown(verdict.null)}."
        yield "Controls:"
        yield bullets(markdown(control) for control in verdict.controls) or "None."
        rows = [
            [
                markdown(one.name),
                code(one.plan or "-"),
                one.tokens_equal or "-",
                one.bits_equal or "-",
                markdown(one.no_result, 400),
            ]
            for one in verdict.trials
        ]
        if rows:
            yield table(["trial", "forced plan", "tokens equal to", "bits equal to", "no result because"], rows)
        if verdict.limits:
            yield "Limits of this verdict:"
            yield bullets(markdown(limit, 600) for limit in verdict.limits)
