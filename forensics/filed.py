"""A filed verdict as reports read it. It may come from another machine: what does not fit its form is left out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROW_COUNT = re.compile(r"gemm\.\w+\.rows(\.decode)?")
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
    reference = _dict(document.get("reference"))
    return Filed(
        outcome=_text(document.get("outcome")),
        claim=_text(document.get("claim")),
        factors=tuple(
            f"{_text(one.get('factor'))} ({_text(one.get('incident'))} against {_text(one.get('reference'))})"
            for one in map(_dict, _list(document.get("factors")))
        ),
        minimal=document.get("minimal") is True,
        reference=None
        if reference.get("synthetic") is True
        else (_text(reference.get("run_id")), _text(reference.get("req_id"))),
        trials=tuple(_trial(_dict(one)) for one in _list(document.get("trials"))),
        controls=tuple(
            f"{_text(one.get('name'))}: {_passed(one.get('passed'))} ({_text(one.get('detail'))})"
            for one in map(_dict, _list(document.get("controls")))
        ),
        limits=tuple(_text(one) for one in _list(document.get("limits"))),
        case_sha256=_text(document.get("case_sha256")),
        source_path=source_path,
        refuted=tuple(_text(one) for one in _list(document.get("refuted"))),
        null=_null(_dict(document.get("null"))),
        findings=tuple(_findings(document)),
    )


def _null(null: dict[str, Any]) -> str:
    if not null:
        return ""
    return (
        f"of {_text(null.get('tried'))} irrelevant pins {_text(null.get('restored'))} took the incident's token away "
        f"and {_text(null.get('induced'))} brought it"
    )


def _findings(document: dict[str, Any]) -> Iterator[str]:
    """Yield what a verdict says beyond its claim, a sentence each."""
    refuted = [_text(one) for one in _list(document.get("refuted"))]
    products = [name for name in refuted if _ROW_COUNT.fullmatch(name)]
    shown = [name for name in refuted if name not in products]
    if products:
        shown.append(f"the row count M of GEMMs ({len(products)} of them, prompt and later passes)")
    if shown:
        yield f"differs, and does nothing: {', '.join(shown)}"
    shares = [
        f"{_text(one.get('factor'))} {one['share']:.0%}"
        for one in map(_dict, _list(document.get("effects")))
        if isinstance(one.get("share"), int | float)
    ]
    if shares:
        yield f"share of the effect on the two tokens' contrast: {', '.join(shares)}"
    for name, title in (("history", "history or step"), ("rounding", "rounding or bug")):
        part = _dict(document.get(name))
        if part:
            answer = _text(part.get("carried_by") or part.get("answer")).replace("_", " ")
            yield f"{title}: {answer} ({_text(part.get('detail'))})"
    yield from _neighbours(_dict(document.get("neighbours")))
    repeats = _dict(document.get("repeats"))
    rate = repeats.get("excludes_rate_above")
    if isinstance(rate, int | float):
        runs = _text(repeats.get("runs"))
        yield f"{runs} repeats gave the same bits: a rate of change above {rate:.0%} is excluded at 95 %"


def _neighbours(part: dict[str, Any]) -> Iterator[str]:
    """Yield who carries the difference, and whether it matters what they say."""
    if not part:
        return
    few, arm = [_text(one) for one in _list(part.get("fewest"))], _text(part.get("arm"))
    named = ", ".join(few[:3]) + (f" and {len(few) - 3} more" if len(few) > 3 else "")
    what = "bits" if part.get("carry") == "bits" else "token, though not for its bits"
    least = "" if part.get("minimal") is True else " (fewer might do)"
    removed = _text(part.get("removed"))
    without = {
        "": "what comes out without is not known",
        "neither": "without, neither arm's bits come out",
        arm: f"without, the {arm}'s bits come out all the same: others carry the difference as well",
    }.get(removed, f"without, the {removed}'s bits come out")
    count = f"{len(few)} of {_text(part.get('of'))} other requests"
    yield f"{count} are enough for the {arm}'s {what}: {named}{least}; {without}; {_text(part.get('detail'))}"
    matters = part.get("contents_matter")
    if isinstance(matters, bool):
        yield (
            f"what the others say {'changes the bits' if matters else 'changes no bit'}: random ids of equal length, "
            "sharing and output length were tried"
        )
    elif part.get("contents") == "random":
        yield "the others' ids were withheld: random ids of equal length, sharing and output length stood in for them"


def _trial(one: dict[str, Any]) -> Trial:
    plan = ", ".join(f"{name}={_text(value)}" for name, value in sorted(_dict(one.get("plan")).items()))
    tokens, bits = (value if value in ARMS else "" for value in (one.get("tokens_equal"), one.get("bits_equal")))
    asked, seen = _dict(one.get("plan")), _dict(one.get("observed"))
    ran = not one.get("refused") and not one.get("failed")
    not_taken = [f"{name}: {_text(seen.get(name)) or 'nothing'} read back for {_text(value)}"
                 for name, value in sorted(asked.items()) if ran and seen.get(name) != value]  # fmt: skip
    execution, stopped = one.get("execution"), one.get("stopped")
    return Trial(
        _text(one.get("name")),
        plan,
        tokens,
        bits,
        _text(one.get("refused")),
        _text(one.get("failed")),
        execution if isinstance(execution, int) else 0,
        "; ".join(not_taken),
        "" if stopped is None else f"ended at output token {_text(stopped)}: not the logits that it had to give",
    )


def _passed(value: Any) -> str:
    return {True: "passed", False: "failed"}.get(value, "not checked") if isinstance(value, bool) else "not checked"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
