"""A flip with a known cause: a request whose token really differs under two plans, as a case that can be proven."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from replay.case import Arm, Case, Plan
from replay.trial import Trace, Treatment, shared_start

if TYPE_CHECKING:
    from replay.engines.transformers import Engine
    from replay.trial import Run

TOKENS, TRIES, VOCABULARY = 32, 60, 256


def planted(engine: Engine, incident: Plan, reference: Plan) -> Case:
    """Return the case of the first random request whose tokens the plans make different. Raises RuntimeError."""
    draw = Random(1)  # noqa: S311 - the same prompts every time
    for _ in range(TRIES):
        ids = tuple(draw.randrange(3, VOCABULARY) for _ in range(24))
        empty = Arm("planted", "planted", {}, output_token_ids=(0,) * TOKENS)
        facts = {"engine": "transformers", "dtype": "bfloat16"}
        case = Case("", ids, {"temperature": 0}, "argmax", facts, empty, empty, flip_index=TOKENS - 1)
        traces = [run_with(engine)(case, Treatment(plan)) for plan in (incident, reference)]
        if why := next((trace.missing for trace in traces if trace.missing), None):
            raise RuntimeError(why)
        flip = shared_start(traces[0].tokens, traces[1].tokens)
        if flip < min(len(trace.tokens) for trace in traces):
            pairs = zip(("i", "r"), traces, strict=True)
            arms = [Arm(f"run-{name}", name, trace.plan, output_token_ids=trace.tokens) for name, trace in pairs]
            return replace(case, incident=arms[0], reference=arms[1], flip_index=flip)
    raise RuntimeError(f"{TRIES} requests, and {incident} and {reference} never gave different tokens")


def run_with(engine: Engine) -> Run:
    """Return what runs a treatment of a case in this process."""

    def run(case: Case, treatment: Treatment) -> Trace:
        engine.case = case
        return engine.run(treatment)

    return run
