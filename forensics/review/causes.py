"""The flip, the graded chain that leads to it, and what was ruled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.markup import bullets, cited, fenced, table
from forensics.text import code, markdown, mermaid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.explanation import Explanation


def flip(explanation: Explanation) -> Iterator[str]:
    """The first token that differs, and how close it was in both arms."""
    found = explanation.flip
    if found is None:
        return
    yield "## The flip"
    moved = (
        "" if found.drift is None else f" The two candidates moved {abs(found.drift):.6g} logits against each other."
    )
    tie = f"{found.tie} of the two candidates" if found.tie else "how close the two candidates were is not on record"
    yield f"First difference: output token {found.token_index}, {tie}.{moved}"

    def said(value: float | None) -> str:
        return "not on record" if value is None else f"{value:.6g}"

    dtype = code(found.dtype) if found.dtype else "unknown dtype"
    yield table(
        ["", "target", "reference"],
        [
            ["token", code(found.target_token), code(found.reference_token)],
            ["top-2 margin, logits", said(found.target_margin), said(found.reference_margin)],
            [f"top-2 margin, ulp of {dtype}", said(found.target_ulps), said(found.reference_ulps)],
            ["lead over the other arm's token, logits", said(found.target_gap), said(found.reference_gap)],
        ],
    )


def chain(explanation: Explanation) -> Iterator[str]:
    """Root to flip as a picture and as a table, the weakest link, and every finding and link there is."""
    if not explanation.findings:
        return
    yield "## Causal chain"
    if explanation.chain:
        yield fenced(_flowchart(explanation), "mermaid")
        yield table(
            ["from", "grade", "to"],
            [[code(one.cause), f"*{one.grade}*", code(one.effect)] for one in explanation.chain],
        )
        yield _strength(explanation)
    else:
        yield "The log does not determine a chain from a cause to the flip. Root cause: `undetermined`."
    yield "### Findings, lowest rung first"
    yield table(
        ["rung", "code", "known how", "code seen on", "what differs", "evidence"],
        [
            [
                one.rung.name.lower(), code(one.code), one.how, explanation.seen.get(one.code, ""),
                markdown(one.says, 600), cited(one.citations, explanation.sources),
            ]
            for one in explanation.findings
        ],
    )  # fmt: skip
    if explanation.links:
        yield "### Links, and how each is known"
        cites = {finding.code: finding.citations for finding in explanation.findings}
        rows = [
            [
                f"{code(one.cause)} → {code(one.effect)}", f"*{one.grade}*", markdown("; ".join(one.why), 900),
                cited((*cites[one.cause][:1], *cites[one.effect][:1]), explanation.sources),
            ]
            for one in explanation.links
        ]  # fmt: skip
        yield table(["link", "grade", "why", "evidence"], rows)


def _flowchart(explanation: Explanation) -> Iterator[str]:
    """Yield a mermaid flowchart. Node names are ours; a label is quoted, with entity codes but for plain letters."""
    yield "flowchart TD"
    rungs = {finding.code: finding.rung.name.lower() for finding in explanation.findings}
    codes = [explanation.chain[0].cause, *(one.effect for one in explanation.chain)]
    for place, name in enumerate(codes):
        yield f"  n{place}[{mermaid(f'{rungs[name]}: {name}')}]"
    for place, one in enumerate(explanation.chain):
        dash = "-->" if one.grade in ("proven", "supported") else "-.->"
        yield f"  n{place} {dash}|{mermaid(one.grade)}| n{place + 1}"


def _strength(explanation: Explanation) -> str:
    weakest = explanation.weakest
    if weakest is None:
        return ""
    raised = ""
    if weakest.raise_by and weakest.grade != "proven":
        raised = f" It would be raised by: {markdown(weakest.raise_by)}."
    return (
        f"Root cause: {code(explanation.root_cause)}. The chain is *{explanation.chain_grade}*, as strong as its "
        f"weakest link, {code(weakest.cause)} → {code(weakest.effect)}.{raised}"
    )


def ruled_out(explanation: Explanation) -> Iterator[str]:
    """What was looked for and not found, and whether the same plan gave the same bits."""
    if not explanation.findings:
        return
    yield "### Looked for and not found"
    marks = (f"{code(name)} ({explanation.seen.get(name, '')})" for name in explanation.ruled_out)
    yield bullets(marks) or "Nothing."
    yield "### Same plan, same bits?"
    counts = explanation.plan_table
    yield table(
        ["pairs of runs of this request", "same bits up to the flip", "other bits"],
        [
            ["same launch shapes", str(counts.same_plan_same_bits), str(counts.same_plan_other_bits)],
            ["other launch shapes", str(counts.other_plan_same_bits), str(counts.other_plan_other_bits)],
        ],
    )
    if counts.counter_examples:
        yield bullets(f"counter-example: {code(one)} and {code(other)}" for one, other in counts.counter_examples[:10])
