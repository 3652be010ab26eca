"""One plan gave other bits when it ran again."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.contrast import factors
from forensics.findings import Finding, Gap, Rung
from forensics.flip import same_bits
from forensics.plan_table import bits_equal, token_steps
from forensics.soundness import unsound
from forensics.timeline import shape_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.NUMERICS
SEEN = "simulated only"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Look for two executions of one plan with other bits: in a verdict's repeats, or among runs of this request.

    A verdict with the outcome `race` and a control that failed shows it (*reproduced*). In the log two requests of one
    run show it (*inferred*) that had the same effective input and, at every step up to the flip, the same tokens,
    launch shape, loads of the neighbours and recorded plan, an identity of the kernels included: without that, another
    kernel is as likely, and it is a gap. Two plans that differ are no race, whatever their bits. Without two runs under
    one plan it is a gap too; where the arms had other inputs, other bits need no race, and nothing is looked at. Bits
    that are further apart than rounding takes them (`soundness.py`) are no race either.

    Competitors: a part of the plan that is not on record (an operator beside the GEMMs, memory that a kernel reads,
    what neighbours contain in a mixture of experts).
    """
    for verdict in incident.verdicts:
        if verdict.outcome == "race" and any(": failed" in control for control in verdict.controls):
            says = f"replay ran one plan twice and got other bits ({verdict.source_path}: {verdict.claim})"
            yield Finding("execution_race", RUNG, says, 0, how="reproduced", citations=incident.target.cite())
            return
    inputs = [arm.request["effective_token_ids_sha256"] for arm in incident.arms()]
    if incident.flip is None or (None not in inputs and inputs[0] != inputs[1]):
        return
    repeats = list(_repeats(incident, incident.flip.token_index))
    pairs = [(one, other) for one, other, same in repeats if not same and one.identity[:2] == other.identity[:2]]
    sure = [pair for pair in pairs if all(_kernels_known(arm, incident.flip.token_index) for arm in pair)]
    if sure:
        one, other = sure[0]
        names = ", ".join(f"{first.name} / {second.name}" for first, second in sure[:3])
        yield Finding(
            "execution_race", RUNG,
            f"{len(sure)} pair(s) of runs of this request had the same plan on record, kernels included, and other "
            f"bits: {names}",
            _onset(incident.target, sure[0], incident.flip.token_index), one.name, other.name, how="inferred",
            citations=one.cite() + other.cite(),
        )  # fmt: skip
    elif not repeats:
        missing = "a second run of the request under one plan (send it twice at idle)"
        yield Gap("execution_race", missing, "whether one plan gives the same bits twice")
    elif pairs:
        yield Gap(
            "execution_race", "batch.algo_id or batch.kernel_variant",
            "whether runs with one launch shape and other bits are a race or ran other kernels",
        )  # fmt: skip


def _repeats(incident: Incident, until: int) -> Iterator[tuple[Evidence, Evidence, bool]]:
    """Yield each arm with every other run of its input and its plan on record, and whether their bits were the same."""
    arms = {arm.identity: arm for arm in (*incident.arms(), *incident.cohort)}
    input_ids = incident.target.request["effective_token_ids_sha256"]
    alike = [arm for arm in arms.values() if arm.request["effective_token_ids_sha256"] == input_ids is not None]
    own = {arm.identity for arm in incident.arms()}
    plans = {arm.identity: _plan(arm, until) for arm in alike}
    steps = {arm.identity: arm.steps.to_dicts() for arm in alike}
    for one, other in combinations(alike, 2):
        if one.identity not in own or plans[one.identity] != plans[other.identity]:
            continue
        ours, theirs = steps[one.identity], steps[other.identity]
        same = bits_equal(ours, theirs, until)
        if same is not None and not any(unsound(*pair) for pair in token_steps(ours, theirs, until)):
            yield one, other, same


def _lived(arm: Evidence, until: int) -> list[Facts]:
    """Return the steps up to the one that chose output token `until`."""
    chosen = [row["step"] for row in arm.tokens().iter_rows(named=True) if row["token_index"] <= until]
    return arm.steps.filter(pl.col("step") <= max(chosen, default=-1)).to_dicts()


def _plan(arm: Evidence, until: int) -> list[tuple[Any, ...]]:
    """Return all that is on record of the plan of each step."""
    loads: dict[int, list[tuple[int, int]]] = {}
    counts = arm.members.select("engine_step", "num_scheduled_tokens", "num_computed_tokens")
    for step, scheduled, computed in counts.iter_rows():
        loads.setdefault(step, []).append((scheduled or 0, computed or 0))
    return [
        (
            shape_class(row), sorted(loads.get(row["engine_step"], ())), row["num_scheduled_tokens"],
            row["num_computed_tokens"], row["row"], row["algo_id"], row["kernel_variant"], row["precision_path"],
            row["requant_cycles"], factors(row),
        )
        for row in _lived(arm, until)
    ]  # fmt: skip


def _kernels_known(arm: Evidence, until: int) -> bool:
    return all(row["algo_id"] is not None or row["kernel_variant"] is not None for row in _lived(arm, until))


def _onset(target: Evidence, pair: tuple[Evidence, Evidence], until: int) -> int:
    """Return the target's step at which its bits part from its repeat's; 0 where the pair is two other runs."""
    if target.identity not in (arm.identity for arm in pair):
        return 0
    (other,) = (arm for arm in pair if arm.identity != target.identity)
    steps = token_steps(target.steps.to_dicts(), other.steps.to_dicts(), until)
    return next(int(row["step"]) for row, theirs in steps if same_bits(row, theirs) is False)
