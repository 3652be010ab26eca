"""From the evidence of an incident to a case that can travel to a machine with the engine.

Only here do the log's records become replay's nouns; `replay` itself knows nothing of the store.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.errors import INGEST, ForensicsError, not_replayable
from forensics.schedules import by_step, check_whole, graph_modes, with_schedules
from forensics.stepwise import STEPWISE, with_windows, withheld
from replay.case import Arm, Case, Plan, Row, TokenStep

if TYPE_CHECKING:
    from forensics.evidence import Evidence
    from forensics.incident import Incident
    from forensics.store import Store

ENGINE_FACTS = (
    "run_id", "replica_id", "engine", "engine_version", "model_id", "weights_sha256", "tokenizer_sha256", "dtype",
    "quantization", "device", "device_type", "num_threads", "host", "kv_block_size", "kv_blocks_total",
)  # fmt: skip
ARCHITECTURE = ("num_layers", "num_heads", "num_kv_heads", "hidden_size", "vocab_size")
"""What a replay can check of the model where the hash of its weights is not on record."""

ALONE = {"batch.rows": "1", "batch.row": "0", "batch.left_pad": "0", "batch.mask_path": "implicit"}
"""What a synthetic reference changes of the incident's plan: the request by itself, nothing else."""


def build_case(store: Store, incident: Incident) -> Case:
    """Return the case of an incident. Raises ForensicsError (exit 4) that names what is not on record."""
    target, reference = incident.target, incident.reference
    ids = target.request["effective_token_ids"]
    if ids is None:
        raise not_replayable(
            target.name, "its token ids are not on record (effective_token_ids is opt-in)",
            "record with `forensics record --with-ids` where that is allowed",
        )  # fmt: skip
    if target.engine is None:
        raise not_replayable(target.name, "its run has no engine record", INGEST)
    if reference is not None and incident.standing in ("same", "cut_short", "sampled"):
        raise ForensicsError(
            f"nothing to replay: {incident.target.name!r} and its reference do not diverge ({incident.standing})",
            0, "`forensics explain` shows the comparison",
        )  # fmt: skip
    arm = _arm(store, target, incident)
    notes = []
    if reference is None:
        notes.append("no reference is on record: the request executed alone stands in for one")
        other = _synthetic(arm)
    else:
        other = _arm(store, reference, incident)
    if target.engine["engine"] in STEPWISE:
        arm, other = with_windows(store, incident, arm, other)
        notes += withheld(arm, other)
    elif by_step(target) or by_step(reference):
        arm, other = with_schedules(arm, other, len(ids), incident.flip.token_index if incident.flip else None)
    return Case(
        x_digest=target.x_digest() or "",
        token_ids=tuple(ids),
        decode_cfg=target.decode_cfg(),
        token_rule=target.request["token_rule"] or "argmax",
        engine=_engine(target.engine),
        incident=arm,
        reference=other,
        flip_index=incident.flip.token_index if incident.flip else None,
        notes=tuple(notes),
    )


def _synthetic(arm: Arm) -> Arm:
    return Arm(run_id="synthetic", req_id="alone", plan=arm.plan | _alone(arm.plan), synthetic=True)


def _alone(plan: Plan) -> Plan:
    return {name: value for name, value in ALONE.items() if name in plan}


def _engine(row: dict[str, Any]) -> dict[str, Any]:
    wanted = ENGINE_FACTS if row.get("weights_sha256") else (*ENGINE_FACTS, *ARCHITECTURE)
    facts = {name: row[name] for name in wanted if row.get(name) is not None}
    facts |= {name: dict(row[name]) for name in ("versions", "environment", "precision_switches") if row.get(name)}
    return facts | {"config": json.loads(row["config"] or "{}")}


def _arm(store: Store, evidence: Evidence, incident: Incident) -> Arm:
    flip = incident.flip
    tokens = evidence.tokens()
    if flip is not None:
        tokens = tokens.filter(pl.col("token_index") <= flip.token_index)
    output = evidence.request["output_token_ids"]
    if output is None and tokens.height and tokens["token_id"].null_count() == 0:
        output = tokens["token_id"].to_list()
    arm = Arm(
        run_id=evidence.request["run_id"],
        req_id=evidence.request["req_id"],
        plan=_plan(evidence),
        rows=_rows(store, evidence),
        output_token_ids=None if output is None else tuple(output),
        effective_token_ids_sha256=evidence.request["effective_token_ids_sha256"],
        steps=tuple(
            TokenStep(
                token_index=row["token_index"],
                token_id=row["token_id"],
                top_token_ids=tuple(row["top_token_ids"] or ()),
                top_logits=tuple(row["top_logits"] or ()),
                logits_sha256=row["logits_sha256"],
            )
            for row in tokens.iter_rows(named=True)
        ),
        schedule=_schedule(evidence),
    )
    if by_step(evidence):
        check_whole(evidence, arm)
        arm = replace(arm, plan=arm.plan | graph_modes(evidence))
    return arm


def _plan(evidence: Evidence) -> Plan:
    """Return the factors on record at the request's first step: the batch's, then the request's own."""
    if evidence.steps.is_empty():
        return {}
    first = evidence.steps.row(0, named=True)
    return {name: value for part in (first["batch_plan"], first["plan"]) for name, value in (part or {}).items()}


def _rows(store: Store, evidence: Evidence) -> tuple[Row, ...]:
    """Return the rows of the request's first launch, in launch order, with ids where they are on record."""
    if evidence.members.is_empty():
        return ()
    first = evidence.members.filter(pl.col("engine_step") == evidence.members["engine_step"].min()).sort("row")
    run_id, replica_id, _ = evidence.identity
    known = store.ask("neighbours_requests", run_id=run_id, replica_id=replica_id, req_ids=first["req_id"].to_list())
    ids = dict(known.select("req_id", "effective_token_ids").iter_rows())
    return tuple(
        Row(name, tokens or 0, None if ids.get(name) is None else tuple(ids[name]))
        for name, tokens in first.select("req_id", "num_scheduled_tokens").iter_rows()
    )


def _schedule(evidence: Evidence) -> tuple[tuple[int, tuple[tuple[str, int, int], ...]], ...]:
    """Return, per engine step that the request took part in, the ordered rows of the launch."""
    own = evidence.steps["engine_step"].drop_nulls().to_list()
    rows: dict[int, list[tuple[str, int, int]]] = {step: [] for step in own}
    columns = ("engine_step", "req_id", "num_scheduled_tokens", "num_computed_tokens")
    for step, name, scheduled, computed in evidence.members.sort("engine_step", "row").select(columns).iter_rows():
        if step in rows:
            rows[step].append((name, scheduled or 0, computed or 0))
    return tuple((step, tuple(rows[step])) for step in sorted(rows))
