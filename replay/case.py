"""A case: one self-contained file with all that a replay needs, and the nouns that proof is made of.

Standard library only: a case travels to a machine that has torch and the engine, and nothing else.
The document form is `schemas/case.v1.json`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "forensics.case/1"
MAX_CASE_BYTES = 256 << 20

Plan = dict[str, str]
"""Plan factors by the names in factors.v1.json; values in their text form ('8', 'explicit')."""


class CaseError(Exception):
    """The case file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Row:
    """One request in a launch. `token_ids` is None where only the length may be known."""

    req_id: str
    tokens: int
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TokenStep:
    """What is on record of one output token: the token, and the highest raw logits with their tokens."""

    token_index: int
    token_id: int | None = None
    top_token_ids: tuple[int, ...] = ()
    top_logits: tuple[float, ...] = ()
    logits_sha256: str | None = None


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: the plan under which the request ran, who shared the launch, what came out.

    `synthetic`: nobody recorded this run; replay executes the request alone and takes that as reference.
    `schedule`: per engine step the ordered rows [req_id, tokens scheduled, tokens computed before].
    `effective_token_ids_sha256`: what this run recorded of its input, so that replay can see two inputs compared.
    """

    run_id: str
    req_id: str
    plan: Plan
    rows: tuple[Row, ...] = ()
    output_token_ids: tuple[int, ...] | None = None
    steps: tuple[TokenStep, ...] = ()
    synthetic: bool = False
    schedule: tuple[tuple[int, tuple[tuple[str, int, int], ...]], ...] = ()
    effective_token_ids_sha256: str | None = None


@dataclass(frozen=True)
class Case:
    """The effective request, the two arms, and the engine and model they ran on.

    `flip_index`: first output position that differs, None when no flip is on record (synthetic reference).
    `engine`: the engine record of the incident run; `model_path`: where this machine may find the model.
    """

    x_digest: str
    token_ids: tuple[int, ...]
    decode_cfg: dict[str, Any]
    token_rule: str
    engine: dict[str, Any]
    incident: Arm
    reference: Arm
    flip_index: int | None = None
    format: str = FORMAT
    notes: tuple[str, ...] = field(default_factory=tuple)

    def horizon(self) -> int:
        """Return how many output tokens a trial must produce: up to and including the flip."""
        if self.flip_index is not None:
            return self.flip_index + 1
        recorded = len(self.incident.output_token_ids or ()) or len(self.incident.steps)
        return recorded or int(self.decode_cfg.get("max_tokens", 1))

    def differing_factors(self) -> dict[str, tuple[str | None, str | None]]:
        """Return {factor: (incident value, reference value)} for factors that the two plans do not share."""
        names = sorted(self.incident.plan.keys() | self.reference.plan.keys())
        pairs = {name: (self.incident.plan.get(name), self.reference.plan.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def to_json(self) -> str:
        """Return the document form, keys sorted, so that equal cases are equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, indent=1) + "\n"

    def sha256(self) -> str:
        """Return the digest of the document form: what a verdict cites."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def load_case(path: Path) -> Case:
    """Read a case file. Raises CaseError with a message for the user."""
    try:
        if path.stat().st_size > MAX_CASE_BYTES:
            raise CaseError(f"{path}: larger than {MAX_CASE_BYTES >> 20} MiB; this is not a case file")
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CaseError(f"{path}: no such file; make one with `forensics case REQ -o {path.name}`") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise CaseError(f"{path}: not a readable JSON case: {fault}") from None
    return case_from(document, str(path))


def case_from(document: Any, where: str) -> Case:
    """Build a Case from its document form. Raises CaseError that names the bad field."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CaseError(f"{where}: not a case ({FORMAT!r} expected in 'format'); make one with `forensics case`")
    try:
        return Case(
            x_digest=_text(document["x_digest"]),
            token_ids=_ids(document["token_ids"]),
            decode_cfg=dict(document["decode_cfg"]),
            token_rule=_text(document["token_rule"]),
            engine=dict(document["engine"]),
            incident=_arm(document["incident"]),
            reference=_arm(document["reference"]),
            flip_index=None if document.get("flip_index") is None else int(document["flip_index"]),
            notes=tuple(_text(note) for note in document.get("notes", ())),
        )
    except KeyError as fault:
        raise CaseError(f"{where}: field {fault} is missing; export the case again with `forensics case`") from None
    except (TypeError, ValueError, OverflowError, AttributeError) as fault:
        raise CaseError(f"{where}: a field has the wrong type: {fault}") from None


def _arm(document: dict[str, Any]) -> Arm:
    output = document.get("output_token_ids")
    return Arm(
        run_id=_text(document["run_id"]),
        req_id=_text(document["req_id"]),
        plan={_text(name): _text(value) for name, value in document["plan"].items()},
        rows=tuple(
            Row(
                _text(row["req_id"]),
                int(row["tokens"]),
                None if row.get("token_ids") is None else _ids(row["token_ids"]),
            )
            for row in document.get("rows", ())
        ),
        output_token_ids=None if output is None else _ids(output),
        steps=tuple(
            TokenStep(
                token_index=int(step["token_index"]),
                token_id=None if step.get("token_id") is None else int(step["token_id"]),
                top_token_ids=_ids(step.get("top_token_ids") or ()),
                top_logits=tuple(float(value) for value in step.get("top_logits") or ()),
                logits_sha256=step.get("logits_sha256"),
            )
            for step in document.get("steps", ())
        ),
        synthetic=bool(document.get("synthetic", False)),
        schedule=tuple(
            (int(step), tuple((_text(req), int(scheduled), int(computed)) for req, scheduled, computed in rows))
            for step, rows in document.get("schedule", ())
        ),
        effective_token_ids_sha256=document.get("effective_token_ids_sha256"),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, found {type(value).__name__}")
    return value


def _ids(values: Any) -> tuple[int, ...]:
    ids = tuple(int(value) for value in values)
    if any(not 0 <= value < 1 << 32 for value in ids):
        raise ValueError("token ids must fit in 32 unsigned bits")
    return ids
