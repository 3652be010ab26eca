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
    from collections.abc import Mapping

FORMAT = "forensics.case/1"
MAX_LAUNCH_TOKENS = 1 << 20
"""Rows times width of a launch: far above what static batches are used for, far below what fills a machine."""

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
class Asked:
    """One request of a window: before which engine step it arrived, what it asked, how it ended.

    block_hashes: keyed hashes of the prompt's KV blocks, equal where the tokens up to there are equal; what is known of
    sharing where `token_ids` is withheld. cache_salt: a stand-in, equal for equal salts. arrival_ts in Unix seconds.
    output_tokens, finish_reason: None where the request had not ended when the record ends.
    """

    req_id: str
    arrival_step: int
    tokens: int
    decode_cfg: dict[str, Any]
    token_ids: tuple[int, ...] | None = None
    token_ids_sha256: str | None = None
    block_hashes: tuple[str, ...] = ()
    cache_salt: str | None = None
    priority: int = 0
    arrival_ts: float = 0.0
    output_tokens: int | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Order:
    """What reached an engine from outside besides requests: 'abort', 'prefix_cache_reset', 'batch_limit_change'.

    It came before `engine_step`, when the first `arrivals` requests of the window had arrived. detail: req_id of an
    abort, reset_running_requests of a reset, changed {limit: [before, after]} of a change.
    """

    engine_step: int
    arrivals: int
    what: str
    detail: dict[str, Any]


Composition = tuple[tuple[str, int, int], ...]
"""The ordered rows of one engine step: (req_id, tokens scheduled, tokens computed before)."""


@dataclass(frozen=True)
class Window:
    """A stretch of a run that an engine can live through again, clocked by engine steps.

    starts: why nothing from before `first_step` is needed: 'engine_start', 'idle', or 'idle_empty_cache'. requests: in
    the order of arrival, the arm's own among them. schedule: every engine step from `first_step` on; () where nobody
    recorded any.
    """

    first_step: int
    starts: str
    requests: tuple[Asked, ...]
    orders: tuple[Order, ...] = ()
    schedule: tuple[tuple[int, Composition], ...] = ()

    def others(self, req_id: str) -> tuple[int, ...]:
        """Return the places in `requests` of everybody else."""
        return tuple(at for at, one in enumerate(self.requests) if one.req_id != req_id)


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: the plan under which the request ran, who shared the launch, what came out.

    `synthetic`: nobody recorded this run; replay executes the request alone and takes that as reference.
    `schedule`: per engine step the ordered rows [req_id, tokens scheduled, tokens computed before].
    `effective_token_ids_sha256`: what this run recorded of its input, so that replay can see two inputs compared.
    `window`: for engines whose launches are composed step by step, all that went in; None for static batches.
    """

    run_id: str
    req_id: str
    plan: Plan
    rows: tuple[Row, ...] = ()
    output_token_ids: tuple[int, ...] | None = None
    steps: tuple[TokenStep, ...] = ()
    synthetic: bool = False
    schedule: tuple[tuple[int, Composition], ...] = ()
    effective_token_ids_sha256: str | None = None
    window: Window | None = None


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

    def arm(self, name: str) -> Arm:
        """Return the arm of that name, 'incident' or 'reference'."""
        return self.incident if name == "incident" else self.reference

    def horizon(self) -> int:
        """Return how many output tokens a trial must produce: up to and including the flip."""
        if self.flip_index is not None:
            return self.flip_index + 1
        recorded = len(self.incident.output_token_ids or ()) or len(self.incident.steps)
        return recorded or int(self.decode_cfg.get("max_tokens") or 1)

    def differing_factors(self) -> dict[str, tuple[str | None, str | None]]:
        """Return {factor: (incident value, reference value)} for factors that the two plans do not share."""
        names = sorted(self.incident.plan.keys() | self.reference.plan.keys())
        pairs = {name: (self.incident.plan.get(name), self.reference.plan.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def to_json(self) -> str:
        """Return the document form, keys sorted, so that equal cases are equal bytes."""
        document = asdict(self)
        for arm in (document["incident"], document["reference"]):
            if arm["window"] is None:
                del arm["window"]  # cases without one keep the digest that filed verdicts cite
        return json.dumps(document, sort_keys=True, ensure_ascii=False, indent=1) + "\n"

    def sha256(self) -> str:
        """Return the digest of the document form: what a verdict cites."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def configuration(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved configuration of an engine record, {} where it is not on record."""
    config = engine.get("config") or {}
    return dict(json.loads(config)) if isinstance(config, str) else dict(config)


def section(engine: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of the resolved configuration, {} where none is on record."""
    found = configuration(engine).get(name)
    return found if isinstance(found, dict) else {}


def launch_fault(rows: int, width: int) -> str | None:
    """Return why a launch is refused before any memory is asked for it, or None."""
    if rows * width <= MAX_LAUNCH_TOKENS:
        return None
    return f"a launch of {rows} rows of {width} tokens, padding included, is above {MAX_LAUNCH_TOKENS} tokens"
