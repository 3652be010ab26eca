"""The incident review: every claim with its evidence, what cannot be claimed, and how to repeat it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from forensics.text import code, command, markdown, moment, shell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from forensics.explain import Explanation, Subject
    from forensics.findings import Citation


def render(explanation: Explanation, out: TextIO, *, picture: str | None = None) -> None:
    """Write the review. picture: file name of the timeline beside it, without suffix; None leaves it out."""
    for block in _review(explanation, picture):
        out.write(block + "\n\n")


def _review(explanation: Explanation, picture: str | None) -> Iterator[str]:
    yield f"# Incident review: request {markdown(explanation.target.req_id)}"
    yield f"**{markdown(explanation.headline, 1000)}**"
    yield "## What is compared"
    yield _subjects(explanation)
    digest = code(explanation.x_digest or "not on record")
    yield f"Reference: {markdown(explanation.rule)}. Digest of the effective request: {digest}."
    if explanation.flip is not None:
        yield "## The flip"
        yield _flip(explanation)
    if picture is not None:
        yield "## Timeline"
        yield f"![Request rows, launch tokens, regime and margin by output token, both arms]({quote(picture)}.svg)"
        yield f"The same picture as PNG: {code(picture + '.png')}."
        yield _spans(explanation)
    if explanation.findings:
        yield "## Causal chain"
        yield _chain(explanation)
        yield "### Findings, lowest rung first"
        yield _findings(explanation)
        yield "### Links, and how each is known"
        yield _links(explanation)
        yield "### Ruled out"
        yield _bullets(code(name) for name in explanation.ruled_out) or "Nothing."
        yield "### Same plan, same bits?"
        yield _plan_table(explanation)
    yield "## Replay verdicts"
    yield from _verdicts(explanation)
    yield "## What we cannot claim"
    yield _bullets(markdown(claim) for claim in explanation.cannot_claim) or "No reservation applies."
    yield "## Commands to reproduce"
    yield _fenced(_commands(explanation))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *([cell.replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"* {item}" for item in items)


def _cited(citations: Iterable[Citation]) -> str:
    return ", ".join(code(citation) for citation in citations) or "derived from the findings it links"


def _subjects(explanation: Explanation) -> str:
    arms = [explanation.target] + ([explanation.reference] if explanation.reference else [])

    def row(name: str, pick: str) -> list[str]:
        return [name, *(code("not on record" if getattr(arm, pick) is None else getattr(arm, pick)) for arm in arms)]

    def arrived(arm: Subject) -> str:
        return moment(arm.arrival_ts)

    return _table(
        ["", "target", "reference"][: len(arms) + 1],
        [
            row("request", "req_id"), row("client's id", "external_req_id"), row("run", "run_id"),
            ["arrived", *(code(arrived(arm)) for arm in arms)],
            row("engine", "engine"), row("engine version", "engine_version"), row("model", "model_id"),
            row("dtype", "dtype"), row("weights sha256", "weights_sha256"), row("output tokens", "output_tokens"),
            row("finish reason", "finish_reason"), row("most rows in a launch", "max_rows"),
            row("most tokens in a launch", "max_launch_tokens"), row("evidence", "citation"),
        ],
    )  # fmt: skip


def _flip(explanation: Explanation) -> str:
    flip = explanation.flip
    if flip is None:
        return ""

    def said(value: float | None) -> str:
        return "not on record" if value is None else f"{value:.6g}"

    table = _table(
        ["", "target", "reference"],
        [
            ["token", code(flip.target_token), code(flip.reference_token)],
            ["top-2 margin, logits", said(flip.target_margin), said(flip.reference_margin)],
            [f"top-2 margin, {flip.dtype or 'unknown dtype'} ulp", said(flip.target_ulps), said(flip.reference_ulps)],
            ["lead over the other arm's token, logits", said(flip.target_gap), said(flip.reference_gap)],
        ],
    )
    moved = "" if flip.drift is None else f" The two candidates moved {abs(flip.drift):.6g} logits against each other."
    tie = f"{flip.tie} of the two candidates" if flip.tie else "how close the two candidates were is not on record"
    return f"First difference: output token {flip.token_index}, {tie}.{moved}\n\n{table}"


def _spans(explanation: Explanation) -> str:
    return _table(
        ["arm", "output tokens", "regime"],
        [
            [lane.name, f"{lane.token_index[span.first]} to {lane.token_index[span.last]}", code(span.state)]
            for lane in explanation.lanes
            for span in lane.spans
        ],
    )


def _chain(explanation: Explanation) -> str:
    if not explanation.chain:
        return "The log does not determine a chain from a cause to the flip. Root cause: `undetermined`."
    steps = [code(explanation.chain[0].cause)]
    steps += [f"→ *{link.grade}* → {code(link.effect)}" for link in explanation.chain]
    weakest = next(link for link in explanation.chain if link.grade == explanation.chain_grade)
    raised = (
        f" It would be raised by: {markdown(weakest.raise_by)}."
        if weakest.raise_by and weakest.grade != "proven"
        else ""
    )
    return (
        f"{' '.join(steps)}\n\nRoot cause: {code(explanation.root_cause)}. The chain is *{explanation.chain_grade}*, "
        f"as strong as its weakest link, {code(weakest.cause)} → {code(weakest.effect)}.{raised}"
    )


def _findings(explanation: Explanation) -> str:
    rows = [
        [
            finding.rung.name.lower(), code(finding.code), markdown(finding.says, 600), finding.how,
            explanation.seen[finding.code], _cited(finding.citations),
        ]
        for finding in explanation.findings
    ]  # fmt: skip
    return _table(["rung", "code", "what differs", "known how", "code seen on", "evidence"], rows)


def _links(explanation: Explanation) -> str:
    cites = {finding.code: finding.citations for finding in explanation.findings}
    rows = [
        [
            f"{code(link.cause)} → {code(link.effect)}", f"*{link.grade}*", markdown("; ".join(link.why), 900),
            _cited((*cites[link.cause][:1], *cites[link.effect][:1])),
        ]
        for link in explanation.links
    ]  # fmt: skip
    return _table(["link", "grade", "why", "evidence"], rows)


def _plan_table(explanation: Explanation) -> str:
    table = explanation.plan_table
    counts = _table(
        ["pairs of runs of this request", "same bits up to the flip", "other bits"],
        [
            ["same launch shapes", str(table.same_plan_same_bits), str(table.same_plan_other_bits)],
            ["other launch shapes", str(table.other_plan_same_bits), str(table.other_plan_other_bits)],
        ],
    )
    examples = _bullets(f"counter-example: {code(one)} and {code(other)}" for one, other in table.counter_examples[:10])
    return counts + (f"\n\n{examples}" if examples else "")


def _verdicts(explanation: Explanation) -> Iterator[str]:
    if not explanation.verdicts:
        yield "None is filed: nothing here is proven."
    for verdict in explanation.verdicts:
        yield f"**{code(verdict.outcome)}** {markdown(verdict.claim, 1500)}. Evidence: {code(verdict.source_path)}."
        if verdict.factors:
            yield "Factors, incident against reference: " + ", ".join(code(factor) for factor in verdict.factors) + "."
        yield "Controls:"
        yield _bullets(markdown(control) for control in verdict.controls) or "None."
        rows = [
            [markdown(one.name), code(one.plan or "-"), one.tokens_equal, one.bits_equal, markdown(one.refused)]
            for one in verdict.trials
        ]
        yield _table(["trial", "forced plan", "tokens equal to", "bits equal to", "refused because"], rows)
        if verdict.limits:
            yield "Limits of this verdict:"
            yield _bullets(markdown(limit, 600) for limit in verdict.limits)


def _commands(explanation: Explanation) -> list[str]:
    """Return what to paste to see the same. Names come from a log that nobody trusts: each is one quoted word."""
    against = [f"--against={explanation.reference.req_id}"] if explanation.reference else []
    sources = {arm.citation.path for arm in (explanation.target, explanation.reference) if arm}
    commands = [f"forensics ingest {shell(path)}" for path in sorted(sources)]
    return [*commands, command("explain", *against, request=explanation.target.req_id), *explanation.next_commands]


def _fenced(lines: list[str]) -> str:
    """Return a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}sh", *lines, fence])
