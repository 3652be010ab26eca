"""The case of an engine that composes each launch anew: its arms' windows, and the factors that stand for them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from forensics.errors import INGEST, not_replayable
from forensics.windows import alone, caches_prefixes, window
from replay.case import section

if TYPE_CHECKING:
    from forensics.evidence import Evidence
    from forensics.incident import Incident
    from forensics.store import Store
    from replay.case import Arm, Plan, Window

STEPWISE = ("vllm",)


def with_windows(store: Store, incident: Incident, arm: Arm, other: Arm) -> tuple[Arm, Arm]:
    """Return the arms with all that their engines took in, and as plans what can be exchanged between such engines."""
    flip, ours = incident.flip, incident.target
    own = window(store, ours, _engine_step(ours, flip.target_step if flip else None))
    if incident.reference is None:
        theirs, other = alone(own, arm.req_id), replace(other, req_id=arm.req_id)
    else:
        step = flip.reference_step if flip else None
        theirs = window(store, incident.reference, _engine_step(incident.reference, step))
    lacks_ids = any(one.token_ids is None for one in (*own.requests, *theirs.requests))
    contents = {"company.contents": "random"} if lacks_ids else {}
    engines = [_engine_plan(one) for one in (ours, incident.reference or ours)]
    kernels = [_kernel_plan(one) for one in (ours, incident.reference or ours)]
    for name in kernels[0].keys() & kernels[1].keys():
        if kernels[0][name] != kernels[1][name]:  # where they agree, the rebuilt engine has them from its record
            engines = [plan | {name: kernel[name]} for plan, kernel in zip(engines, kernels, strict=True)]
    return (
        replace(arm, window=own, plan=company_plan("incident", own) | engines[0] | contents),
        replace(other, window=theirs, plan=company_plan("reference", theirs) | engines[1] | contents),
    )


def company_plan(arm: str, window: Window) -> Plan:
    """Return what reached the engine besides the request, as factors: other requests, and orders from outside."""
    orders = any(one.what != "abort" for one in window.orders)
    others = len(window.requests) > 1
    return {"company.requests": arm if others else "alone", "engine.orders": arm if orders else "none"}


def _engine_step(evidence: Evidence, step: int | None) -> int:
    """Return the engine step of a request's step, of its last one for None."""
    steps = evidence.steps if step is None else evidence.steps.filter(pl.col("step") == step)
    numbers = steps["engine_step"].drop_nulls()
    if numbers.is_empty():
        why = "not on record is engine_step of its steps"
        raise not_replayable(evidence.name, why, INGEST)
    return int(numbers.max())  # type: ignore[arg-type]


def _engine_plan(evidence: Evidence) -> Plan:
    """Return the settings of the run's engine that decide how launches are composed; those on record."""
    engine = evidence.engine or {}
    limits = section(engine, "scheduler_config") | json.loads(engine.get("scheduler_limits") or "{}")
    found = {
        "engine.token_budget": limits.get("max_num_batched_tokens"),
        "engine.max_rows": limits.get("max_num_seqs"),
        "engine.kv_blocks": engine.get("kv_blocks_total"),
        "engine.prefix_cache": str(caches_prefixes(engine)).lower(),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _kernel_plan(evidence: Evidence) -> Plan:
    """Return the settings of the run's engine that decide with which kernels a launch is computed; those on record."""
    engine = evidence.engine or {}
    kernels = section(engine, "kernel_config")
    invariant = engine.get("batch_invariant")
    found = {
        "dtype.weights": engine.get("dtype"),
        "graph.mode": engine.get("graph_mode"),
        "engine.attention_backend": engine.get("attention_backend"),
        "engine.kv_dtype": section(engine, "cache_config").get("cache_dtype"),
        "engine.linear_backend": kernels.get("linear_backend"),
        "engine.moe_backend": kernels.get("moe_backend"),
        "engine.batch_invariant": None if invariant is None else str(bool(invariant)).lower(),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def withheld(arm: Arm, other: Arm) -> list[str]:
    """Say whose ids are not on record: random ones of equal length and sharing stand in for them."""
    if "company.contents" not in arm.plan:
        return []
    windows = [one.window for one in (arm, other) if one.window is not None]
    count = sum(one.token_ids is None for window in windows for one in window.requests)
    return [
        f"the ids of {count} neighbours are not on record: random ids of equal length and sharing stand in for them"
    ]
