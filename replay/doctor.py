"""What of the factors this machine honours: each is really pinned on a small random model, and read back.

Standard library; the trials run in children, like those of a proof.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from replay.case import Arm, Case, Plan
from replay.catalogue import factors
from replay.exchange import pin_not_taken
from replay.trial import Treatment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replay.trial import Run

RANDOM_MODEL = "random"
"""The engine's word for a model of two layers with random weights."""

ENGINE = "transformers"
PROMPT = tuple(range(3, 19))
TOKENS = 3


@dataclass(frozen=True)
class Finding:
    """What became of one value of one factor. `answer`: honoured, refused, not_pinned, failed or observed_only."""

    factor: str
    value: str
    scope: str
    answer: str
    detail: str


def findings(run: Run, say: Callable[[str], None]) -> list[Finding]:
    """Return one finding for each value that is tried of each factor. Raises TrialError when no trial can run."""
    case = doctor_case()
    return [_try(run, case, name, plan, say) for name, plan in wanted()]


def doctor_case() -> Case:
    """Return the request that is run: a few ids of the random model's vocabulary, in launches with a neighbour."""
    lengths = [(len(PROMPT), 0), *((1, len(PROMPT) + at) for at in range(TOKENS - 1))]
    launches = tuple((at, (("neighbour", 1, 9 + at), ("doctor", *own))) for at, own in enumerate(lengths))
    arm = Arm("doctor", "doctor", {}, output_token_ids=(0,) * TOKENS, schedule=launches)
    engine: dict[str, Any] = {"engine": ENGINE, "dtype": "bfloat16"}
    other = replace(arm, schedule=())
    return Case("", PROMPT, {"temperature": 0}, "argmax", engine, arm, other, flip_index=TOKENS - 1)


def wanted() -> Iterator[tuple[str, Plan]]:
    """Yield (factor, plan) for each value to try: the catalogue's examples, else every value of an enum."""
    for name, entry in factors().items():
        values = entry["values"].get("enum", ())
        tried = entry.get("examples", [{name: value} for value in values] or [{}])
        yield from ((name, plan) for plan in (tried if ENGINE in entry["pinnable"] or not entry["pinnable"] else [{}]))


def _try(run: Run, case: Case, name: str, plan: Plan, say: Callable[[str], None]) -> Finding:
    entry, value = factors()[name], plan.get(name, "")
    scope = "fresh process" if entry["scope"] == "fresh_process" else "in process"
    if ENGINE not in entry["pinnable"]:
        others = ", ".join(entry["pinnable"])
        detail = f"forced on {others}, by the replay of a case" if others else "this version does not force it"
        return Finding(name, "", scope, "observed_only", detail)
    say(f"{name}={value}")
    trace = run(case, Treatment(plan))
    if trace.refused:
        return Finding(name, value, scope, "refused", trace.refused)
    if trace.failed:
        return Finding(name, value, scope, "failed", trace.failed)
    if problem := pin_not_taken(trace):
        return Finding(name, value, scope, "not_pinned", problem)
    others = ", ".join(f"{one}={theirs}" for one, theirs in sorted(plan.items()) if one != name)
    return Finding(name, value, scope, "honoured", f"read back; with {others}" if others else "read back")


def documents(found: list[Finding]) -> list[dict[str, str]]:
    """Return the findings once a factor where it is observed only, in JSON's values."""
    once = dict.fromkeys(found)
    return [asdict(one) for one in once]
