"""Facts of an explanation, each as one line of text. Log text in them is not yet printable: the screen sees to that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.text import moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.explanation import Explanation, Subject


def subject(subject: Subject) -> str:
    """Return name, time, load and length of one arm."""
    name = subject.req_id
    if subject.external_req_id and subject.external_req_id not in name:
        name += f" ({subject.external_req_id})"
    load = "launches not on record"
    if subject.max_rows is not None:
        tokens = "" if subject.max_launch_tokens is None else f", {subject.max_launch_tokens} tokens"
        load = f"up to {subject.max_rows} row{'s' * (subject.max_rows != 1)}{tokens} a launch"
    length = "no output on record" if subject.output_tokens is None else f"{subject.output_tokens} out"
    return f"{name} · {moment(subject.arrival_ts)} · {load} · {length} ({subject.finish_reason or 'no finish reason'})"


def engine(explanation: Explanation) -> str:
    """Return what ran the two arms."""
    arms = [one for one in (explanation.target, explanation.reference) if one is not None]
    said = [
        " ".join(
            str(part)
            for part in (one.engine, one.engine_version, (one.model_id or "").rsplit("/")[-1], one.dtype)
            if part
        )
        or "engine not on record"
        for one in arms
    ]
    runs = {one.run_id for one in arms}
    same = "" if len(arms) == 1 else ", one run" if len(runs) == 1 else ", two runs"
    return f"{said[0]}{same}" if len(set(said)) == 1 else f"{said[0]}; the reference {said[1]}"


def fabric(explanation: Explanation) -> str:
    """Return who held the ranks of each arm up, if anybody did; '' where no collective is on record."""
    said = [f"{arm}: {one.verdict}" for arm, comms in explanation.fabric.items() for one in comms[:2]]
    return "; ".join(said)


def rule(explanation: Explanation) -> str:
    """Return how the reference was chosen, and whether another key gives another one."""
    if explanation.cohorts.other is None:
        return explanation.rule
    return f"{explanation.rule}. Also on record with the other key: --against={explanation.cohorts.other}"


def inputs(explanation: Explanation) -> str:
    """Return how the two inputs differ; '' where they do not: equal inputs are what everybody expects."""
    found = explanation.inputs
    if found is None or found.same is True:
        return ""
    says = found.says or ("whether they are the same is not on record" if found.same is None else "not the same")
    facts = [
        f"{one.fact} {one.target or 'not on record'} against {one.reference or 'not on record'}" for one in found.shaped
    ]
    return "; ".join([says, *facts])


def letters(explanation: Explanation) -> dict[str, str]:
    """Return path → letter of the files that findings cite."""
    paths = dict.fromkeys(one.path for finding in explanation.findings for one in finding.citations)
    return {path: chr(ord("a") + place) if place < 26 else f"f{place}" for place, path in enumerate(paths)}


def as_many_as_fit(codes: Sequence[str], width: int) -> str:
    """Return as many codes as fit on one line, at least one, and how many more there are."""
    whole = ", ".join(codes)
    if len(whole) <= width:
        return whole
    kept = whole[: width - len(" and 99 more")].rpartition(", ")[0] or codes[0]
    return f"{kept} and {len(codes) - len(kept.split(', '))} more"
