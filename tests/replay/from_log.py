"""A case straight from a recorded log, so that replay's tests need nothing of forensics."""

import gzip
import json
from pathlib import Path

from replay.case import Arm, Case, Row, TokenStep


def read_log(directory: Path) -> list[dict]:
    """Return all records of all files of a log."""
    lines = []
    for path in sorted(directory.glob("*.jsonl*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines += [json.loads(line) for line in data.splitlines()]
    return lines


def merged(records: list[dict], kind: str, **where: str) -> dict:
    """Return the partial records of one identity as one."""
    out: dict = {}
    for record in records:
        if record["kind"] == kind and all(record.get(name) == value for name, value in where.items()):
            out |= record
    return out


def arm(records: list[dict], req_id: str, until: int) -> Arm:
    """Return one request of the log as an arm: its plan and launch at its first step."""
    request = merged(records, "request", req_id=req_id)
    own = [r for r in records if r["kind"] == "step" and r["req_id"] == req_id]
    steps, first = [r for r in own if "token_index" in r], own[0]
    batches = {r["engine_step"]: r for r in records if r["kind"] == "batch" and r["run_id"] == first["run_id"]}
    members = [
        r
        for r in records
        if r["kind"] == "step" and r["engine_step"] == first["engine_step"] and r["run_id"] == first["run_id"]
    ]
    return Arm(
        run_id=first["run_id"],
        req_id=req_id,
        plan=batches[first["engine_step"]]["plan"] | first.get("plan", {}),
        rows=tuple(
            Row(r["req_id"], r["num_scheduled_tokens"], _ids(merged(records, "request", req_id=r["req_id"])))
            for r in sorted(members, key=lambda r: r["row"])
        ),
        output_token_ids=tuple(request["output_token_ids"]),
        steps=tuple(
            TokenStep(
                r["token_index"], r["token_id"], tuple(r["top_token_ids"]), tuple(r["top_logits"]), r["logits_sha256"]
            )
            for r in steps
            if r["token_index"] <= until
        ),
        effective_token_ids_sha256=request["effective_token_ids_sha256"],
        schedule=schedule(records, first["run_id"], req_id),
    )


def schedule(records: list[dict], run_id: str, req_id: str) -> tuple:
    """Return the rows of every engine step that a request took part in."""
    rows: dict[int, list[dict]] = {}
    for record in records:
        if record["kind"] == "step" and record["run_id"] == run_id:
            rows.setdefault(record["engine_step"], []).append(record)
    return tuple(
        (
            step,
            tuple(
                (r["req_id"], r["num_scheduled_tokens"], r["num_computed_tokens"])
                for r in sorted(rows[step], key=lambda r: r["row"])
            ),
        )
        for step in sorted(rows)
        if any(r["req_id"] == req_id for r in rows[step])
    )


def _ids(request: dict) -> tuple[int, ...] | None:
    return tuple(request["effective_token_ids"]) if "effective_token_ids" in request else None


def case(records: list[dict], incident: str, reference: str) -> Case:
    """Return the case of two requests of a log that were asked the same."""
    target = merged(records, "request", req_id=incident)
    pairs = zip(
        target["output_token_ids"], merged(records, "request", req_id=reference)["output_token_ids"], strict=False
    )
    flip = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    last = flip if flip is not None else len(target["output_token_ids"]) - 1
    return Case(
        x_digest="unused",
        token_ids=tuple(target["effective_token_ids"]),
        decode_cfg=target["decode_cfg_applied"],
        token_rule=target["token_rule"],
        engine=merged(records, "engine", run_id=arm(records, incident, last).run_id),
        incident=arm(records, incident, last),
        reference=arm(records, reference, last),
        flip_index=flip,
    )
