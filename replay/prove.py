"""Trials in, verdict out. Standard library; `run` executes plans, so a test can hand in its own.

Proof is about bits: a set S of factors is proven when the incident with the reference's S gives the reference's
logits bit for bit up to the flip, and the reference with the incident's S gives the incident's. A token that comes
back is weaker, since on a near tie almost any change of plan turns it; that is said, beside how often it happens.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from replay.arbiter import arbiter as who_is_right
from replay.case import configuration
from replay.catalogue import check_pin
from replay.controls import Stop, check_arms, check_record, other_machine, other_tokenizer
from replay.coverage import reservations
from replay.effects import effects
from replay.history import history_or_step
from replay.implied import SOURCES, gemm_rows, refine
from replay.localise import MOST as MOST_PATCHES
from replay.localise import localise as localised
from replay.named import hold_named, judge_named
from replay.neighbours import MOST, neighbours
from replay.passes import MOST as MOST_PASSES
from replay.passes import fewest_passes
from replay.races import repeat_all, weigh_race
from replay.rounding import rounding_or_bug
from replay.search import EXHAUSTIVE, smallest
from replay.trial import unsupported
from replay.verdict import OUTCOMES, Control, Factor, Found, Verdict
from replay.workbench import MAX_TRIALS, Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from replay.case import Case
    from replay.trial import Run

__all__ = ["OUTCOMES", "Verdict", "prove"]

REPEATS = 2
"""Times that the incident runs again by default: enough to see a common race, see races.py for what it excludes."""


def prove(
    case: Case,
    pins: Sequence[str],
    run: Run,
    *,
    weights_sha256: str | None = None,
    tokenizer_sha256: str | None = None,
    config: dict[str, Any] | None = None,
    repeats: int = REPEATS,
    arms_only: bool = False,
    localise: bool = False,
    arbiter: bool = False,
    jobs: int = 1,
    command: str = "",
    say: Callable[[str], None] = lambda _line: None,
) -> Verdict:
    """Return what trials of the case show of the pinned factors; without pins, of the smallest set that explains it.

    pins: 'FACTOR=VALUE', 'incident' or 'reference' (both: every differing factor). config: the model's config.json.
    arms_only: whether the two arms differ is all that is asked. localise: which operator, too. arbiter: who is right,
    too. jobs: trials that `run` takes at once, from threads.
    Raises PinError on other text.
    """
    wanted = [check_pin(text) for text in pins]
    bench = Bench(case, run, say, jobs=jobs)
    controls: list[Control] = []
    more: dict[str, Any] = {}
    try:
        if reason := unsupported(case):
            raise Stop("inconclusive", reason, controls)
        controls += check_record(case, weights_sha256, config or {})
        _announce(bench, named=bool(wanted), more=MOST_PATCHES * localise + arbiter)
        check_arms(bench, controls)
        hold_named(bench, wanted)
        say(f"{bench.seconds / bench.executed:.1f} s a trial so far, loading included")
        found = smallest(bench) if arms_only else _answer(bench, wanted, repeats, controls, more)
        if localise and more:
            more["localised"] = localised(bench, more["history"])
        if arbiter and more:
            more["arbiter"] = who_is_right(bench)
    except Stop as stop:
        found = Found(stop.outcome, stop.claim)
        if stop.outcome == "race":
            more["repeats"] = repeats_found = weigh_race(bench)
            found = Found("race", f"{stop.claim}; {_race_text(repeats_found.p_value)}")
    if other := other_tokenizer(case, tokenizer_sha256):
        found = found.with_limits(other)
    if other := other_machine(case, controls, bench.incident):
        found = found.with_limits(other)
    return _verdict(bench, case, found, controls, command, more)


def _answer(
    bench: Bench,
    wanted: Sequence[tuple[str, str] | str],
    repeats: int,
    controls: list[Control],
    more: dict[str, Any],
) -> Found:
    """Return what explains two arms that differ, and put all else that trials tell of it into `more`. Raises Stop."""
    found = refine(bench, judge_named(bench, wanted) if wanted else smallest(bench))
    more["neighbours"] = neighbours(bench, found)
    more["rounding"] = rounding_or_bug(bench)
    more["history"] = history = history_or_step(bench)
    more["passes"] = fewest_passes(bench, found, history)
    more["repeats"] = repeat_all(bench, repeats)
    if more["repeats"].changed:
        raise Stop("race", "a plan gave other bits when it ran again", controls)
    more["effects"], more["interactions"] = effects(bench)
    return found


def _announce(bench: Bench, *, named: bool, more: int) -> None:
    """Say before the first trial how many there can be. more: those that were asked for beyond the proof."""
    names = bench.factors()
    cells = 2 * (len(names) + 2) if named else 2 ** len(names) if len(names) <= EXHAUSTIVE else MAX_TRIALS
    by_rows = bool(set(names) & set(SOURCES))
    crowd = MOST + MOST_PASSES if bench.case.incident.window else 0
    most = MAX_TRIALS if by_rows else min(MAX_TRIALS, 3 + cells + crowd + more + 24)
    likely = f"about {min(most, 10 + cells + more // 2)}"
    if by_rows:
        likely += f", or {min(most, 2 * (10 + cells) + more // 2)} where M of the GEMMs takes part"
    differ = "1 factor differs" if len(names) == 1 else f"{len(names)} factors differ"
    bench.say(f"{differ}: at most {most} trials of {bench.case.horizon()} tokens, most likely {likely}; loading the "
              "model comes on top")  # fmt: skip


def _race_text(p_value: float | None) -> str:
    if p_value is None:
        return "how often was not counted"
    sure = "the arms still differ beyond it" if p_value < 0.05 else "that the arms differ at all is not shown"
    return f"over repeats of both arms {sure} (Fisher's exact test, p = {p_value:.3g})"


def _verdict(
    bench: Bench, case: Case, found: Found, controls: list[Control], command: str, more: dict[str, Any]
) -> Verdict:
    trace = bench.done[0].trace if bench.done else None
    flip: dict[str, int | None] | None = None
    if bench.incident and bench.reference and found.outcome != "no_divergence":
        index = bench.count - 1
        flip = {
            "token_index": index,
            "incident_token": bench.incident.tokens[index],
            "reference_token": bench.reference.tokens[index],
        }
    return Verdict(
        outcome=found.outcome,
        claim=found.claim,
        case_sha256=case.sha256(),
        run_id=case.incident.run_id,
        req_id=case.incident.req_id,
        reference={
            "run_id": case.reference.run_id,
            "req_id": case.reference.req_id,
            "synthetic": case.reference.synthetic,
        },
        engine={
            name: case.engine[name]
            for name in ("engine", "model_id", "weights_sha256", "versions")
            if name in case.engine
        },
        factors=tuple(_factor(bench, name) for name in found.names),
        minimal=found.minimal,
        flip=flip,
        controls=tuple(controls),
        trials=bench.filed(),
        null=found.null,
        refuted=found.refuted,
        limits=(*_record_limits(case), *found.limits),
        host=_host(trace.host) if trace else {},
        ts=round(time.time(), 3),
        command=command,
        **more,
    )


def _factor(bench: Bench, name: str) -> Factor:
    """Return a factor with both arms' values, on record or as they follow from the launch."""
    incident, reference = (gemm_rows(bench.case, plan) | plan for plan in bench.plans())
    return Factor(name, incident.get(name), reference.get(name))


def _record_limits(case: Case) -> list[str]:
    """Say what the record itself leaves open."""
    limits = list(reservations(case, configuration(case.engine))) if case.engine.get("engine") == "vllm" else []
    limits += case.notes if case.incident.window else ()
    if case.reference.synthetic:
        limits.append("the reference is synthetic: it was executed here and not seen in production")
    for name, (incident, reference) in sorted(case.differing_factors().items()):
        for arm, value in (("incident", incident), ("reference", reference)):
            if value is None:
                limits.append(f"{name} is not on record for the {arm}; there it was left as this machine has it")
    return limits


def _host(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in facts.items()
        if name in ("host", "os", "cpu", "versions", "environment", "torch")
    }
