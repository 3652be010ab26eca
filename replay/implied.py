"""What follows from a launch: the row count M of every GEMM is rows × width, then rows, one for each next token.

So rows and padding act in two ways: by themselves, and through M. M is on no record of its own, since it would differ
whenever they do and be exchanged twice. Here it is held at either arm's value, to tell the two ways apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.search import reduce_set
from replay.verdict import Found

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.case import Case, Plan
    from replay.exchange import Swap
    from replay.workbench import Bench, Until

LAYER_ROLES = ("q", "k", "v", "o", "gate", "up", "down")
SOURCES = ("batch.rows", "batch.left_pad", "batch.right_pad")
OTHER_PASSES = ("prefill.chunks", "prefill.cached_prefix")
SPARED = 16
"""Trials that the rest of the proof still needs."""


def gemm_rows(case: Case, plan: Plan) -> Plan:
    """Return gemm.<role>.rows and gemm.<role>.rows.decode as they follow from the launch; {} where they do not."""
    if "batch.rows" not in plan or any(name in plan for name in OTHER_PASSES) or plan.get("decode.mode") == "recompute":
        return {}
    rows = int(plan["batch.rows"])
    width = len(case.token_ids) + sum(int(plan.get(name, 0)) for name in SOURCES[1:])
    found = {f"gemm.{role}.rows": str(rows * width) for role in LAYER_ROLES} | {"gemm.lm_head.rows": str(rows)}
    if case.horizon() > 1:
        found |= {f"gemm.{role}.rows.decode": str(rows) for role in (*LAYER_ROLES, "lm_head")}
    return found


def refine(bench: Bench, found: Found) -> Found:
    """Return the proven set with rows and padding told apart from M, where one of them is in it; else as it was."""
    if found.outcome != "proven" or not set(found.names) & set(SOURCES):
        return found
    case = bench.case
    m_incident, m_reference = (gemm_rows(case, plan) for plan in bench.plans())
    differing = tuple(name for name in m_incident if name in m_reference and m_incident[name] != m_reference[name])
    differing = tuple(name for name in differing if name not in bench.plans()[0] and name not in bench.plans()[1])
    if not differing:
        return found
    incident, reference = bench.plans()
    held = incident | {name: m_incident[name] for name in differing}, reference | {n: m_reference[n] for n in differing}

    def swap(names: tuple[str, ...], until: Until = "failed") -> Swap:
        return bench.swap(names, held, until=until, note=", M of every GEMM held")

    return _judge(bench, found, differing, swap)


def _judge(bench: Bench, found: Found, differing: tuple[str, ...], swap: Callable[..., Swap]) -> Found:
    alone = swap(found.names)
    if alone.proven:
        text = "with M of every GEMM held as each arm had it, the exchange still works: M has no part in it"
        return found.with_limits(text, refuted=(*found.refuted, *differing))
    if alone.status == "open":
        return found.with_limits(f"the part of M in this could not be told apart: {alone.why_not}")
    prompt = tuple(name for name in differing if not name.endswith(".decode"))
    later = tuple(name for name in differing if name not in prompt)
    groups, whole = [found.names, later], swap((*found.names, *later))
    if not whole.proven:
        groups, whole = [prompt, *groups], swap((*found.names, *differing))
    if not whole.proven:
        why = whole.why_not or "with M forced by filler rows instead, the other arm's bits do not come out"
        return found.with_limits(f"the part of M in this could not be told apart: {why}")
    with bench.within(bench.limit, SPARED):
        names = reduce_set(whole.names, lambda names: swap(names, "unproven").status, groups)
        removals = [swap(tuple(name for name in names if name != one)) for one in names] if len(names) > 1 else []
    still_open = [one for one in removals if one.status == "open"]
    claim = (
        f"exchanging {', '.join(names)} exchanges the results, bit for bit, up to and including token "
        f"{bench.count - 1}, with M of every other GEMM held; {', '.join(found.names)} stand for it on record"
    )
    limits = tuple(f"whether all of it is needed is open: {one.why_not}" for one in still_open[:1])
    refuted = tuple(name for name in (*found.refuted, *found.names, *differing) if name not in names)
    return Found("proven", claim, names, not still_open, found.null, found.limits + limits, refuted)
