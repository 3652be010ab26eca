"""Explanation: the one object that every report reads. Data only; `explain.py` makes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forensics.cohort import Cohorts
    from forensics.communicators import Communicator
    from forensics.consequence import Consequence, Spread
    from forensics.counterfactual import Counterfactual
    from forensics.exhibits import Exhibit
    from forensics.feedback import Loop
    from forensics.filed import Filed
    from forensics.findings import Citation, Finding, Gap, Grade, Link
    from forensics.flip import Flip, Standing
    from forensics.history import Moment
    from forensics.inputs import Inputs
    from forensics.lane import Lane
    from forensics.plan_table import PlanTable

FORMAT = "forensics.explanation/1"
EXIT = {"divergence": 1, "same": 0, "cut_short": 0, "sampled": 0, "no_reference": 4, "outputs_unknown": 4}


@dataclass(frozen=True)
class Subject:
    """One arm as a report names it."""

    req_id: str
    external_req_id: str | None
    run_id: str
    replica_id: str
    arrival_ts: float | None
    engine: str | None
    engine_version: str | None
    model_id: str | None
    dtype: str | None
    weights_sha256: str | None
    output_tokens: int | None
    finish_reason: str | None
    max_rows: int | None
    max_launch_tokens: int | None
    citation: Citation


@dataclass(frozen=True)
class Covered:
    """One field of the contract: the share of rows that carry it in each arm, and what its absence stops."""

    field: str
    target: float
    reference: float | None
    stops: str

    @property
    def missing(self) -> bool:
        """Return whether an arm has it on no row."""
        return 0 in (self.target, self.reference)


@dataclass(frozen=True)
class Explanation:
    """What happened to one request, how each statement is known, and what is missing.

    root_cause: a cause code, 'none' (nothing diverged) or 'undetermined'. chain: links from the root to the flip.
    loops: feedback that went on while the target ran, beside the chain and without a say in its grade.
    counterfactuals: launches that the admission rule gives without a cause; they are in the reasons of links, too.
    fabric: what the collectives of each arm come to, by communicator; {} without a reference.
    spread: how many other requests diverged; None where nobody counted (it looks at the whole store).
    """

    standing: Standing
    headline: str
    target: Subject
    reference: Subject | None
    rule: str
    cohorts: Cohorts
    x_digest: str | None
    inputs: Inputs | None
    flip: Flip | None
    consequence: Consequence | None
    lanes: tuple[Lane, ...]
    history: tuple[Moment, ...]
    findings: tuple[Finding, ...]
    links: tuple[Link, ...]
    chain: tuple[Link, ...]
    chain_grade: Grade | None
    root_cause: str
    ruled_out: tuple[str, ...]
    gaps: tuple[Gap, ...]
    coverage: tuple[Covered, ...]
    record_first: tuple[str, ...]
    plan_table: PlanTable
    verdicts: tuple[Filed, ...]
    exhibits: tuple[Exhibit, ...]
    cannot_claim: tuple[str, ...]
    next_commands: tuple[str, ...]
    seen: dict[str, str]
    loops: tuple[Loop, ...] = ()
    counterfactuals: tuple[Counterfactual, ...] = ()
    fabric: dict[str, tuple[Communicator, ...]] = field(default_factory=dict)
    spread: Spread | None = None
    format: str = FORMAT

    @property
    def exit_code(self) -> int:
        """Return 0 for no divergence, 1 for one, 4 where the log cannot tell."""
        return EXIT[self.standing]

    @property
    def weakest(self) -> Link | None:
        """Return the link of the chain's grade that something would raise, else the first of that grade."""
        weak = [link for link in self.chain if link.grade == self.chain_grade]
        return min(weak, key=lambda link: link.raise_by is None, default=None)

    @property
    def proof(self) -> Filed | None:
        """Return a verdict on file that holds a proof."""
        return next((verdict for verdict in self.verdicts if verdict.proves), None)

    @property
    def sources(self) -> dict[str, str]:
        """Return path → short name of every file that is cited: its own name, numbered where two files share one."""
        cited = [one.citation for one in (self.target, self.reference) if one is not None]
        cited += [one for finding in self.findings for one in finding.citations]
        cited += [one.citation for one in self.history if one.citation is not None]
        names: dict[str, str] = {}
        for path in dict.fromkeys(one.path for one in cited):
            name = path.rpartition("/")[2]
            taken = sum(other.rpartition("/")[2] == name for other in names)
            names[path] = f"{name} ({taken + 1})" if taken else name
        return names

    def finding(self, code: str) -> Finding | None:
        """Return the finding of that code, if there is one."""
        return next((finding for finding in self.findings if finding.code == code), None)

    def document(self) -> dict[str, Any]:
        """Return the document form (schemas/explanation.v1.json)."""
        document = asdict(self)
        for finding, entry in zip(self.findings, document["findings"], strict=True):
            entry["rung"] = finding.rung.name.lower()
        return document
