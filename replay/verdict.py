"""What the trials show: one document, filed beside the log. `schemas/verdict.v1.json` describes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.arbiter import Arbiter
    from replay.localise import Localised
    from replay.passes import Passes

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
    """One trial under the name of its part in the proof, as it is filed.

    execution: number of the run; parts of the proof that ask for the same plan share one. tokens_equal, bits_equal:
    incident, reference, both or neither, up to the flip. history, switch, since, stopped, contrast, refused, failed: as
    in trial.py.
    """

    name: str
    plan: dict[str, str]
    execution: int = 0
    history: dict[str, str] | None = None
    switch: int | None = None
    since: int | None = None
    observed: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    logits_sha256: tuple[str, ...] = ()
    tokens_equal: str | None = None
    bits_equal: str | None = None
    stopped: int | None = None
    contrast: float | None = None
    refused: str | None = None
    failed: str | None = None


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
    """An outcome and the set of factors that it is about.

    minimal: every smaller set was tried and is not proven. refuted: differing factors that the proof does without.
    """

    outcome: str
    claim: str
    names: tuple[str, ...] = ()
    minimal: bool = False
    null: Null | None = None
    limits: tuple[str, ...] = ()
    refuted: tuple[str, ...] = ()

    def with_limits(self, *limits: str, refuted: tuple[str, ...] | None = None) -> Found:
        """Return the same answer with more said about it."""
        return replace(self, limits=self.limits + limits, refuted=self.refuted if refuted is None else refuted)


@dataclass(frozen=True)
class Effect:
    """What one differing factor does to the contrast between the two tokens, as a share of the arms' difference.

    share: Shapley value over the orders of exchange whose every step ran, divided by the difference of the arms;
    orders: how many there were.
    """

    factor: str
    share: float
    orders: int


@dataclass(frozen=True)
class Interaction:
    """How much the effect of one factor depends on the other, as a share of the arms' difference; 0: not at all."""

    factors: tuple[str, str]
    share: float


@dataclass(frozen=True)
class History:
    """Whether the KV of earlier passes or the pass of the flip carries the difference, and from which pass on.

    carried_by: history, step, both or open; first_pass: the pass whose KV turns the token, 0 is the prompt's.
    """

    carried_by: str
    first_pass: int | None
    detail: str


@dataclass(frozen=True)
class Rounding:
    """Rounding or bug? `answer`: rounding, not_rounding or open.

    fp32_agrees: whether both arms give the same tokens in fp32; ulps: the largest distance of the two tokens at the
    flip, in units in the last place of the logits' dtype; None where it could not be told.
    """

    answer: str
    fp32_agrees: bool | None
    ulps: float | None
    detail: str


@dataclass(frozen=True)
class Repeats:
    """How often one plan ran again, how often other bits came out, and the rate of change that this excludes.

    excludes_rate_above: at 95 %, 1 - 0.05^(1/runs) when nothing changed; p_value: Fisher's exact test that the two
    arms give the incident's token equally often, where bits did change.
    """

    runs: int
    changed: int
    excludes_rate_above: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Neighbours:
    """Who of an arm's company carries the difference.

    arm: incident or reference; of: how many others there were; fewest: ids of those that, alone with the request, give
    the arm's bits, or its token only (carry); minimal: none of them can be left out. removed: whose bits come out when
    just these are taken away. contents: what they said in these trials; contents_matter: whether random ids of equal
    length, sharing and output length give other bits, None where that could not be tried.
    """

    arm: str
    of: int
    fewest: tuple[str, ...]
    carry: str
    minimal: bool
    removed: str | None
    contents: str
    contents_matter: bool | None
    detail: str


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
    refuted: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    history: History | None = None
    rounding: Rounding | None = None
    repeats: Repeats | None = None
    neighbours: Neighbours | None = None
    passes: Passes | None = None
    localised: Localised | None = None
    arbiter: Arbiter | None = None
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
