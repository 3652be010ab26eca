"""What the trials show: one document, filed beside the log. `schemas/verdict.v1.json` describes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "forensics.verdict/1"

OUTCOMES = (
    "proven", "sufficient", "necessary", "interaction", "refuted", "race", "input_differs", "weights_differ",
    "environment_differs", "no_divergence", "not_reproduced", "not_pinned", "inconclusive",
)  # fmt: skip
UNDECIDED = (
    "race",
    "input_differs",
    "weights_differ",
    "environment_differs",
    "not_reproduced",
    "not_pinned",
    "inconclusive",
)


@dataclass(frozen=True)
class Factor:
    """A factor of the answer and its value in both arms; None: not on record for that arm."""

    factor: str
    incident: str | None
    reference: str | None


@dataclass(frozen=True)
class Ran:
    """One trial as it is filed. `tokens_equal`, `bits_equal`: incident, reference, both or neither, up to the flip."""

    name: str
    plan: dict[str, str]
    observed: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    logits_sha256: tuple[str, ...] = ()
    tokens_equal: str | None = None
    bits_equal: str | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Control:
    """A trial that must come out in a known way. `passed`: None when the record does not let us check."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Null:
    """How often pins that have nothing to do with the difference change the token as S does."""

    tried: int = 0
    restored: int = 0
    induced: int = 0
    pins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """An outcome and the set of factors that it is about; `minimal`: every smaller set was tried and is not proven."""

    outcome: str
    claim: str
    names: tuple[str, ...] = ()
    minimal: bool = False
    null: Null | None = None
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The answer, its evidence and its limits.

    factors: the set S that the claim is about, with both arms' values.
    """

    outcome: str
    claim: str
    case_sha256: str
    run_id: str
    req_id: str
    reference: dict[str, Any]
    engine: dict[str, Any]
    factors: tuple[Factor, ...] = ()
    minimal: bool = False
    flip: dict[str, int | None] | None = None
    controls: tuple[Control, ...] = ()
    trials: tuple[Ran, ...] = ()
    null: Null | None = None
    limits: tuple[str, ...] = ()
    host: dict[str, Any] = field(default_factory=dict)
    ts: float = 0.0
    command: str = ""
    format: str = FORMAT

    def to_json(self) -> str:
        """Return the document form."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, indent=1) + "\n"

    def exit_code(self) -> int:
        """Return the exit code as `diff` gives it: 0 no divergence, 1 a divergence, 4 not decided."""
        if self.outcome == "no_divergence":
            return 0
        return 4 if self.outcome in UNDECIDED else 1
