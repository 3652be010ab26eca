"""What happened, in sentences for whoever was not there; what is compared; what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.markup import bullets, table
from forensics.text import code, markdown, moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.explanation import Explanation, Subject

KEYS = {
    "same x": "the same effective request",
    "same asked": "the same question, with another effective request",
    "chosen": "a request that was named with --against",
    "none": "nothing",
}


def summary(explanation: Explanation) -> Iterator[str]:
    """Three to five sentences for a manager."""
    yield "## Summary"
    said = [_opening(explanation), markdown(explanation.headline, 1000)]
    if explanation.standing == "divergence":
        said += [_extent(explanation), _standing(explanation)]
    yield " ".join(sentence for sentence in said if sentence)


def _opening(explanation: Explanation) -> str:
    if explanation.standing != "divergence" or explanation.inputs is None:
        return ""
    return {
        True: "One and the same request got two different answers.",
        False: "Two answers differ, and the model was not given the same input for both.",
        None: "Two answers differ; whether the model was given the same input is not on record.",
    }[explanation.inputs.same]


def _extent(explanation: Explanation) -> str:
    parts = []
    if explanation.consequence is not None:
        found = explanation.consequence
        parts.append(f"from there on {found.differing} of {found.positions} output tokens differ")
    if explanation.spread is not None:
        found_in = explanation.spread
        parts.append(
            f"{found_in.divergent} of the {found_in.requests} requests on record diverged from their reference"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _standing(explanation: Explanation) -> str:
    if explanation.proof is not None:
        known = "That the plan carries the difference was proven by executing the request again, bit for bit"
    else:
        known = "This is read from the log, and no replay has proven it yet"
    return f"{known}; which of the two answers is the right one, it does not say."


def compared(explanation: Explanation) -> Iterator[str]:
    """The two arms side by side, and by which rule the reference was chosen."""
    yield "## What is compared"
    arms = [explanation.target] + ([explanation.reference] if explanation.reference else [])
    sources = explanation.sources

    def row(name: str, pick: str) -> list[str]:
        values = [getattr(arm, pick) for arm in arms]
        return [name, *("not on record" if value is None else code(value) for value in values)]

    def where(arm: Subject) -> str:
        return code(f"{sources[arm.citation.path]}:{arm.citation.line}")

    yield table(
        ["", "target", "reference"][: len(arms) + 1],
        [
            row("request", "req_id"), row("client's id", "external_req_id"), row("run", "run_id"),
            row("replica", "replica_id"), ["arrived", *(code(moment(arm.arrival_ts)) for arm in arms)],
            row("engine", "engine"), row("engine version", "engine_version"), row("model", "model_id"),
            row("dtype", "dtype"), row("weights sha256", "weights_sha256"), row("output tokens", "output_tokens"),
            row("finish reason", "finish_reason"), row("most rows in a launch", "max_rows"),
            row("most tokens in a launch", "max_launch_tokens"), ["evidence", *(where(arm) for arm in arms)],
        ],
    )  # fmt: skip
    cohorts = explanation.cohorts
    facts = [
        f"Reference: {markdown(explanation.rule)}.",
        f"Compared is {KEYS.get(cohorts.used, 'nothing')}. On record: {cohorts.same_x} other run(s) with the same x, "
        f"{cohorts.same_asked} of which the same was asked with another x.",
        f"Digest of the effective request: {code(explanation.x_digest or 'not on record')}.",
    ]
    if cohorts.used == "chosen":
        facts.append("The reference was **chosen** by whoever ran the command, not by the rule.")
    if cohorts.other is not None:
        facts.append(f"The other key gives other runs too, such as {code(cohorts.other)}: see them with `--against`.")
    if any(verdict.synthetic for verdict in explanation.verdicts):
        facts.append("A verdict below has a **synthetic** reference: replay ran the request alone; nobody recorded it.")
    yield bullets(facts)
    found = explanation.inputs
    if found is not None and found.same is not True:
        yield "### How the two inputs differ"
        yield markdown(found.says or "That they are the same is not on record.", 1000)
        if found.shaped:
            rows = [
                [code(one.fact), *(code(value) if value else "not on record" for value in (one.target, one.reference))]
                for one in found.shaped
            ]
            yield table(["shaping fact", "target", "reference"], rows)


def impact(explanation: Explanation) -> Iterator[str]:
    """What it did to this answer, how many requests have the like, and what is unknown of it."""
    yield "## Impact"
    facts = []
    if explanation.consequence is not None and explanation.flip is not None:
        found = explanation.consequence
        facts.append(
            f"This answer: from output token {explanation.flip.token_index} on, {found.differing} of {found.positions} "
            "positions hold another token."
        )
    if explanation.reference is not None:
        ends = [code(arm.finish_reason or "not on record") for arm in (explanation.target, explanation.reference)]
        facts.append(f"Finish reason: {ends[0]}, in the reference {ends[1]}.")
    spread = explanation.spread
    if spread is not None:
        facts.append(
            f"This store: {spread.divergent} divergent request(s) among {spread.requests} on record, "
            f"{spread.same_run} of them in the run of the target, {spread.same_tie} with a flip of the same closeness."
        )
    facts.append(
        "Unknown: how many users saw it, and what the other tokens mean to them; the log holds no such record."
    )
    facts.append("Unknown: requests that ran only once; nothing says what a second run would have answered.")
    yield bullets(facts)
    if spread is not None and spread.others:
        rows = [
            [
                code(one.req_id), code(moment(one.arrival_ts)), "-" if one.flip_at is None else str(one.flip_at),
                "-" if one.gap_ulps is None else f"{one.gap_ulps:.3g}", one.tie or "not on record",
            ]
            for one in spread.others
        ]  # fmt: skip
        yield table(["also divergent", "arrived", "flip at token", "gap, ulp", "closeness"], rows)
        yield "Whether these have the same cause was not looked at: run `forensics explain` on each."
