"""The nouns of a trial: what is asked for, what one execution showed, and what this version cannot run at all.

Standard library: torch lives in the child processes of `replay/children.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from replay.case import Case, Plan, configuration
from replay.coverage import uncovered

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE, BAD_INPUT, UNDECIDED = 2, 3, 4
TOKEN_RULES = ("argmax", "argmax_lowest", "topk0")
OUT_OF_MEMORY = "out of memory: run on a machine with more of it, or a case of a smaller model or launch"


class TrialError(Exception):
    """No trial can run at all. `stderr`: all that the child said, for who asks; `exit_code`: whose fault it is."""

    def __init__(self, message: str, exit_code: int = UNDECIDED, stderr: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.stderr = exit_code, stderr


@dataclass(frozen=True)
class Treatment:
    """What one trial is given.

    plan: in force for the whole trial. history, switch: the KV of the request as a run under `history` leaves it
    before its pass number `switch` is put into this trial before that pass. since: that run itself got the KV of a run
    under `plan` before its pass number `since`, so passes `since` to `switch` - 1 are the history's. repeat: number of
    a deliberate repeat; a repeat is always executed, never remembered. must_give: hashes of the logits that an exchange
    has to bring; once all that is read back has been seen, the trial ends at the first token that came from others.
    watched: the request's own rows at the output of every operator in this pass are hashed. donor, patched: there the
    own rows of these operators become those of a run under `donor` whose earlier passes are this run's. arbitrate:
    nothing is generated; the pass of the flip runs in float64 and in fp32, and `details` holds what came of it.
    """

    plan: Plan
    history: Plan | None = None
    switch: int = 0
    since: int = 0
    repeat: int = 0
    must_give: tuple[str, ...] = ()
    watched: int | None = None
    donor: Plan | None = None
    patched: tuple[str, ...] = ()
    arbitrate: bool = False

    def key(self) -> str:
        """Return a text that is equal for equal treatments."""
        parts = [self.plan, self.history, self.switch, self.since, self.repeat, self.must_give, self.watched]
        parts += [self.donor, tuple(sorted(self.patched)), self.arbitrate]
        return json.dumps(parts, sort_keys=True)


@dataclass(frozen=True)
class Trace:
    """What one execution showed.

    refused: why the plan could not be honoured; then nothing ran. failed: why there is no result although nothing was
    refused: out of memory, a crash, no answer in time. observed: factor → value read back by another path than the
    pin; details: the launch and kernels as seen; stopped: output position at which it was ended, since a token up to
    there did not come from the logits that it had to give; contrast: float64 h·(w_a − w_b) at the flip, from the final
    hidden state and the output rows of the incident's and the reference's token, in logits. departure: where the
    execution left the recorded schedule, and why that may be; it ends there. activations: (operator, sha256 of the
    request's own rows of its output, before any patch) in the watched pass, in order of execution.
    """

    plan: Plan
    tokens: tuple[int, ...] = ()
    logits_sha256: tuple[str, ...] = ()
    top_token_ids: tuple[tuple[int, ...], ...] = ()
    top_logits: tuple[tuple[float, ...], ...] = ()
    observed: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    stopped: int | None = None
    contrast: float | None = None
    refused: str | None = None
    failed: str | None = None
    departure: str | None = None
    activations: tuple[tuple[str, str], ...] = ()
    host: dict[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> str | None:
        """Return why there is nothing to compare, None where there is."""
        return self.refused or self.failed

    def same_bits(self, other: Trace, count: int) -> bool:
        """Return whether the first `count` tokens came from the same logits, bit for bit."""
        mine, theirs = self.logits_sha256[:count], other.logits_sha256[:count]
        return len(mine) == count and mine == theirs

    def same_tokens(self, other: Trace, count: int) -> bool:
        """Return whether the first `count` tokens are the same."""
        return len(self.tokens) >= count and self.tokens[:count] == other.tokens[:count]


Run = Callable[[Case, Treatment], Trace]
"""What executes a treatment of a case: child processes, or a made-up world in a test."""


def trace_from(document: dict[str, Any], host: dict[str, Any]) -> Trace:
    """Build a Trace from its JSON form."""
    known = {name: document[name] for name in (one.name for one in fields(Trace)) if name in document}
    for name in ("tokens", "logits_sha256"):
        known[name] = tuple(known.get(name, ()))
    for name in ("top_token_ids", "top_logits"):
        known[name] = tuple(tuple(values) for values in known.get(name, ()))
    known["activations"] = tuple((name, digest) for name, digest in known.get("activations", ()))
    return Trace(**known | {"host": host})


def unsupported(case: Case) -> str | None:
    """Return why this version cannot run the case again, or None."""
    engine, batching = case.engine.get("engine"), configuration(case.engine).get("batching", "static")
    if engine not in ("transformers", "vllm"):
        return f"the case is of engine {engine!r}; this version runs transformers and vLLM again"
    if engine == "vllm" and (reason := uncovered(case, configuration(case.engine))):
        return reason
    if batching not in ("static", "continuous"):
        return f"the case is of {batching!r} batching; this version runs static and continuous batching again"
    for name, arm in (("incident", case.incident), ("reference", case.reference)):
        if arm.plan.get("attention.backend") == "paged" and "batch.schedule" not in arm.plan:
            return f"the {name} ran in continuous batching, and the case does not hold its launches: export it again"
        if engine != "vllm" and (mode := arm.plan.get("graph.mode", "eager")) != "eager":
            return f"the {name} ran in graph mode {mode!r}; this version launches eagerly, which gives other bits"
    if float(case.decode_cfg.get("temperature") or 0) != 0:
        return "the request was sampled at a temperature above 0, and the generator's state is not on record"
    rule, pinned = case.token_rule, case.incident.plan.get("token.rule")
    if rule not in TOKEN_RULES:
        return f"the case's token rule is {rule!r}; this version has {', '.join(TOKEN_RULES)}"
    if rule == "topk0" != pinned:
        return "the case's token rule is 'topk0', and the incident's plan does not hold token.rule=topk0"
    return None


def shared_start(incident: Sequence[int], reference: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    pairs = enumerate(zip(incident, reference, strict=False))
    return next((index for index, (mine, theirs) in pairs if mine != theirs), min(len(incident), len(reference)))
