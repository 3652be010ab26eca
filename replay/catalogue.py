"""The factor catalogue, factors.v1.json: which names and values a pin may have, and who reads them when."""

from __future__ import annotations

import difflib
import functools
import json
import re
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay import tactic
from replay.case import CaseError, launch_fault

if TYPE_CHECKING:
    from replay.case import Case, Plan

FILE = "factors.v1.json"
INTEGER = "-?[0-9]{1,18}"
MAX_THREADS = 4096
ARMS = ("incident", "reference")
"""Pin words that name an arm: every differing factor takes this arm's value."""


class PinError(Exception):
    """The text after --pin-algo is not a pin; the message says what would be."""


@functools.cache
def factors() -> dict[str, dict[str, Any]]:
    """Return the catalogue by factor name. It lies beside this file in a wheel, in schemas/ in a checkout."""
    here = Path(__file__).resolve().parent
    path = next(p for p in (here / FILE, here.parent / "schemas" / FILE) if p.is_file())
    return {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["factors"]}


def environment(plan: Plan) -> dict[str, str]:
    """Return the variables that a process must start with to run under the plan."""
    variables: dict[str, str] = {}
    for name, value in sorted(plan.items()):
        entry = factors().get(name, {})
        given = entry.get("environment", {}) if entry.get("scope") == "fresh_process" else {}
        variables |= {given: value} if isinstance(given, str) else given.get(value, {})
    return variables


def check_pin(text: str) -> tuple[str, str] | str:
    """Return (factor, value), or the arm that the text names. Raises PinError."""
    if text in ARMS:
        return text
    name, separator, value = text.partition("=")
    if not separator or not value:
        raise PinError(f"{text!r} is not a pin: give FACTOR=VALUE, 'incident' or 'reference'")
    if name not in factors():
        near = difflib.get_close_matches(name, factors(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"the factors are {', '.join(sorted(factors()))}"
        raise PinError(f"{name!r} is not a plan factor; {hint}")
    if not _allowed(value, factors()[name]["values"]):
        raise PinError(f"{name} cannot be {value!r}; allowed: {_describe(factors()[name]['values'])}")
    return name, _canonical(name, value)


def _canonical(name: str, value: str) -> str:
    """Return the one text of a value that can be written in several ways. Raises PinError."""
    if factors()[name].get("notation") != "cublaslt":
        return value
    try:
        return str(tactic.parse(value))
    except tactic.TacticError as fault:
        raise PinError(f"{name}: {fault}") from None


def check_plans(case: Case) -> None:
    """Check what both arms have on record. Raises CaseError that names the field; unknown factors may be there."""
    for arm, plan in (("incident", case.incident.plan), ("reference", case.reference.plan)):
        for name in sorted(plan.keys() & factors().keys()):
            if not _allowed(plan[name], rule := factors()[name]["values"]):
                raise CaseError(f"{arm}.plan.{name} cannot be {reprlib.repr(plan[name])}; allowed: {_describe(rule)}")
        padding = sum(int(plan.get(name, 0)) for name in ("batch.left_pad", "batch.right_pad"))
        if fault := launch_fault(int(plan.get("batch.rows", 1)), len(case.token_ids) + padding):
            raise CaseError(f"{arm}.plan (batch.rows, batch.left_pad, batch.right_pad): {fault}")
        if int(plan.get("cpu.threads", 1)) > MAX_THREADS:
            raise CaseError(f"{arm}.plan.cpu.threads cannot be {plan['cpu.threads']}; allowed: up to {MAX_THREADS}")


def _allowed(value: str, rule: dict[str, Any]) -> bool:
    if "enum" in rule:
        return value in rule["enum"]
    if "pattern" in rule:
        return re.search(rule["pattern"], value) is not None
    return re.fullmatch(INTEGER, value) is not None and int(value) >= rule.get("minimum", int(value))


def _describe(rule: dict[str, Any]) -> str:
    if "enum" in rule:
        return ", ".join(rule["enum"])
    if "pattern" in rule:
        return f"text that matches {rule['pattern']}"
    return f"an integer, {rule['minimum']} or more" if "minimum" in rule else "an integer"
