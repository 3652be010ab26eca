"""The document form of a case, checked field by field: it may come from a machine that nobody trusts.

Whatever is wrong becomes a CaseError that names the field. Standard library only.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from replay.case import FORMAT, Arm, Case, CaseError, Plan, Row, TokenStep
from replay.fields import BadField, count, each, field, mapping, text, token_ids
from replay.windowfile import composition, decode_cfg, window_from

if TYPE_CHECKING:
    from pathlib import Path

MAX_CASE_BYTES = 256 << 20
MAX_OUTPUT_TOKENS = 1_000_000


def load_case(path: Path) -> Case:
    """Read a case file. Raises CaseError with a message for the user."""
    try:
        if path.stat().st_size > MAX_CASE_BYTES:
            raise CaseError(f"{path}: larger than {MAX_CASE_BYTES >> 20} MiB; this is not a case file")
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CaseError(f"{path}: no such file; make one with `forensics case REQ -o {path.name}`") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise CaseError(f"{path}: not a readable JSON case: {fault}") from None
    return case_from(document, str(path))


def case_from(document: Any, where: str) -> Case:
    """Build a Case from its document form. Raises CaseError that names the bad field."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CaseError(f"{where}: not a case ({FORMAT!r} expected in 'format'); make one with `forensics case`")
    try:
        case = Case(
            x_digest=field(document, "x_digest", text),
            token_ids=field(document, "token_ids", _prompt),
            decode_cfg=field(document, "decode_cfg", decode_cfg),
            token_rule=field(document, "token_rule", text),
            engine=field(document, "engine", _engine),
            incident=field(document, "incident", _arm),
            reference=field(document, "reference", _arm),
            flip_index=field(document, "flip_index", count, None),
            notes=field(document, "notes", each(text), ()),
        )
    except BadField as fault:
        raise CaseError(f"{where}: {fault.path} {fault.what}; export the case again with `forensics case`") from None
    recorded = case.incident.output_token_ids
    if case.flip_index is not None and recorded is not None and case.flip_index >= len(recorded):
        raise CaseError(f"{where}: flip_index is {case.flip_index}, but the incident has {len(recorded)} output tokens")
    if case.horizon() > MAX_OUTPUT_TOKENS:
        name = "decode_cfg.max_tokens or the recorded output" if case.flip_index is None else "flip_index"
        raise CaseError(f"{where}: {name} asks for more than {MAX_OUTPUT_TOKENS} output tokens")
    return case


def _arm(value: Any) -> Arm:
    document = mapping(value)
    arm = Arm(
        run_id=field(document, "run_id", text),
        req_id=field(document, "req_id", text),
        plan=field(document, "plan", _plan),
        rows=field(document, "rows", each(_row), ()),
        output_token_ids=field(document, "output_token_ids", token_ids, None),
        steps=field(document, "steps", each(_step), ()),
        synthetic=bool(document.get("synthetic", False)),
        schedule=field(document, "schedule", each(composition), ()),
        effective_token_ids_sha256=field(document, "effective_token_ids_sha256", text, None),
        window=field(document, "window", window_from, None),
    )
    if arm.window is not None and arm.req_id not in {one.req_id for one in arm.window.requests}:
        raise BadField("window.requests", f"does not hold the arm's own request {arm.req_id!r}")
    return arm


def _plan(value: Any) -> Plan:
    plan = mapping(value)
    return {name: field(plan, name, text) for name in plan}


def _row(value: Any) -> Row:
    row = mapping(value)
    return Row(field(row, "req_id", text), field(row, "tokens", count), field(row, "token_ids", token_ids, None))


def _step(value: Any) -> TokenStep:
    step = mapping(value)
    return TokenStep(
        token_index=field(step, "token_index", count),
        token_id=field(step, "token_id", count, None),
        top_token_ids=field(step, "top_token_ids", token_ids, ()),
        top_logits=field(step, "top_logits", each(float), ()),
        logits_sha256=field(step, "logits_sha256", text, None),
    )


def _engine(value: Any) -> dict[str, Any]:
    document = mapping(value)
    for name in ("versions", "precision_switches", "environment", "scheduler_limits"):
        field(document, name, mapping, None)
    field(document, "config", _config, None)
    return document


def _config(value: Any) -> dict[str, Any]:
    """Return a resolved configuration; what is called a section of it is one."""
    config = mapping(json.loads(value) if isinstance(value, str) else value)
    for name in config:
        if name.endswith("_config"):
            field(config, name, mapping, None)
    return config


def _prompt(values: Any) -> tuple[int, ...]:
    ids = token_ids(values)
    if not ids:
        raise ValueError("at least one token id expected")
    return ids
