"""A filed verdict as reports read it. It may come from another machine: what does not fit its form is left out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from forensics.verdict_words import findings, items, mapping, text

ARMS = ("incident", "reference", "both", "neither")


@dataclass(frozen=True)
class Trial:
    """One part of the proof: an execution under one plan, and whose result it equals, with ARMS as words.

    execution: parts with one number are one run; 0 in older verdicts. not_taken: pins that were read back otherwise.
    """

    name: str
    plan: str
    tokens_equal: str
    bits_equal: str
    refused: str
    failed: str = ""
    execution: int = 0
    not_taken: str = ""
    stopped: str = ""

    @property
    def no_result(self) -> str:
        """Return why the trial does not say whose result it gives, "" where it does."""
        return "; ".join(part for part in (self.refused, self.failed, self.not_taken, self.stopped) if part)


@dataclass(frozen=True)
class Filed:
    """What a verdict claims, and on which trials it rests. reference: None for a synthetic one, run alone by replay."""

    outcome: str
    claim: str
    factors: tuple[str, ...]
    minimal: bool
    reference: tuple[str, str] | None
    trials: tuple[Trial, ...]
    controls: tuple[str, ...]
    limits: tuple[str, ...]
    case_sha256: str
    source_path: str
    refuted: tuple[str, ...] = ()
    null: str = ""
    findings: tuple[str, ...] = ()
    """Effects, history or step, rounding or bug, repeats: a sentence each, where the verdict holds them."""
    arbitrated: bool = False
    """Whether float64 was asked which of the two tokens is right, and there is an answer."""

    @property
    def synthetic(self) -> bool:
        """Return whether nobody recorded the reference: replay executed the request alone and took that."""
        return self.reference is None

    @property
    def proves(self) -> bool:
        """Return whether the document holds what a proof needs, and not only the word for it."""
        names = ", ".join(factor.partition(" (")[0] for factor in self.factors)
        exchanges: dict[str, list[Trial]] = {}  # of these factors, by what else was held in both arms
        for trial in self.trials:
            _, found, rest = trial.name.partition(f" with {names} of the ")
            if found:
                exchanges.setdefault(rest.partition(",")[2], []).append(trial)
        return (
            self.outcome == "proven"
            and bool(self.factors)
            and any(_exchanged(trials) for trials in exchanges.values())
            and not any(": failed" in control for control in self.controls)
        )


def _exchanged(trials: list[Trial]) -> bool:
    """Return whether both exchanges of a set gave the other arm's bits, with every pin read back."""
    bits = {one.name.partition(":")[0]: one.bits_equal for one in trials}
    return (
        bits.get("restored") in ("reference", "both")
        and bits.get("induced") in ("incident", "both")
        and not any(one.not_taken for one in trials)
    )


def filed(row: dict[str, Any]) -> Filed:
    """Return the verdict of a row of the store's verdict table."""
    return parse(json.loads(row["document"]), row["source_path"])


def parse(document: dict[str, Any], source_path: str) -> Filed:
    """Return the verdict of a document. `reference` is None for a synthetic one: it stands for any."""
    reference = mapping(document.get("reference"))
    return Filed(
        outcome=text(document.get("outcome")),
        claim=text(document.get("claim")),
        factors=tuple(
            f"{text(one.get('factor'))} ({text(one.get('incident'))} against {text(one.get('reference'))})"
            for one in map(mapping, items(document.get("factors")))
        ),
        minimal=document.get("minimal") is True,
        reference=None
        if reference.get("synthetic") is True
        else (text(reference.get("run_id")), text(reference.get("req_id"))),
        trials=tuple(_trial(mapping(one)) for one in items(document.get("trials"))),
        controls=tuple(
            f"{text(one.get('name'))}: {_passed(one.get('passed'))} ({text(one.get('detail'))})"
            for one in map(mapping, items(document.get("controls")))
        ),
        limits=tuple(text(one) for one in items(document.get("limits"))),
        case_sha256=text(document.get("case_sha256")),
        source_path=source_path,
        refuted=tuple(text(one) for one in items(document.get("refuted"))),
        null=_null(mapping(document.get("null"))),
        findings=tuple(findings(document)),
        arbitrated=mapping(document.get("arbiter")).get("answer")
        in ("incident_wrong", "reference_wrong", "undecidable"),
    )


def _null(null: dict[str, Any]) -> str:
    if not null:
        return ""
    return (
        f"of {text(null.get('tried'))} irrelevant pins {text(null.get('restored'))} took the incident's token away "
        f"and {text(null.get('induced'))} brought it"
    )


def _trial(one: dict[str, Any]) -> Trial:
    plan = ", ".join(f"{name}={text(value)}" for name, value in sorted(mapping(one.get("plan")).items()))
    tokens, bits = (value if value in ARMS else "" for value in (one.get("tokens_equal"), one.get("bits_equal")))
    asked, seen = mapping(one.get("plan")), mapping(one.get("observed"))
    ran = not one.get("refused") and not one.get("failed")
    not_taken = [f"{name}: {text(seen.get(name)) or 'nothing'} read back for {text(value)}"
                 for name, value in sorted(asked.items()) if ran and seen.get(name) != value]  # fmt: skip
    execution, stopped = one.get("execution"), one.get("stopped")
    return Trial(
        text(one.get("name")),
        plan,
        tokens,
        bits,
        text(one.get("refused")),
        text(one.get("failed")),
        execution if isinstance(execution, int) else 0,
        "; ".join(not_taken),
        "" if stopped is None else f"ended at output token {text(stopped)}: not the logits that it had to give",
    )


def _passed(value: Any) -> str:
    return {True: "passed", False: "failed"}.get(value, "not checked") if isinstance(value, bool) else "not checked"
