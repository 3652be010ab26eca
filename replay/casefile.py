"""The document form of a case, checked field by field: it may come from a machine that nobody trusts.

Whatever is wrong becomes a CaseError that names the field. Standard library only.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from replay.case import FORMAT, Arm, Case, CaseError, Plan, Row, TokenStep

if TYPE_CHECKING:
    from collections.abc import Callable
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
            x_digest=_field(document, "x_digest", _text),
            token_ids=_field(document, "token_ids", _prompt),
            decode_cfg=_field(document, "decode_cfg", _decode_cfg),
            token_rule=_field(document, "token_rule", _text),
            engine=_field(document, "engine", _engine),
            incident=_field(document, "incident", _arm),
            reference=_field(document, "reference", _arm),
            flip_index=_field(document, "flip_index", _count, None),
            notes=_field(document, "notes", _each(_text), ()),
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


class BadField(Exception):  # noqa: N818 - what it is; on the way out each level puts its name before the path
    """A field does not hold what it should."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what


_REQUIRED: Any = object()


def _field(document: Any, name: str, read: Callable[[Any], Any], default: Any = _REQUIRED) -> Any:
    """Return what `read` makes of a field; an optional one may be absent or null. Raises BadField."""
    value = document.get(name)
    if value is None and (default is not _REQUIRED or name not in document):
        if default is _REQUIRED:
            raise BadField(name, "is missing")
        return default
    try:
        return read(value)
    except BadField as fault:
        raise BadField(f"{name}.{fault.path}", fault.what) from None
    except (TypeError, ValueError, OverflowError, RecursionError) as fault:
        raise BadField(name, f"has the wrong type or value: {fault}") from None


def _arm(value: Any) -> Arm:
    document = _object(value)
    return Arm(
        run_id=_field(document, "run_id", _text),
        req_id=_field(document, "req_id", _text),
        plan=_field(document, "plan", _plan),
        rows=_field(document, "rows", _each(_row), ()),
        output_token_ids=_field(document, "output_token_ids", _ids, None),
        steps=_field(document, "steps", _each(_step), ()),
        synthetic=bool(document.get("synthetic", False)),
        schedule=_field(document, "schedule", _each(_scheduled), ()),
        effective_token_ids_sha256=_field(document, "effective_token_ids_sha256", _text, None),
    )


def _plan(value: Any) -> Plan:
    plan = _object(value)
    return {name: _field(plan, name, _text) for name in plan}


def _row(value: Any) -> Row:
    row = _object(value)
    return Row(_field(row, "req_id", _text), _field(row, "tokens", _count), _field(row, "token_ids", _ids, None))


def _step(value: Any) -> TokenStep:
    step = _object(value)
    return TokenStep(
        token_index=_field(step, "token_index", _count),
        token_id=_field(step, "token_id", _count, None),
        top_token_ids=_field(step, "top_token_ids", _ids, ()),
        top_logits=_field(step, "top_logits", _each(float), ()),
        logits_sha256=_field(step, "logits_sha256", _text, None),
    )


def _scheduled(value: Any) -> tuple[int, tuple[tuple[str, int, int], ...]]:
    step, rows = value
    return _count(step), tuple((_text(req), _count(scheduled), _count(computed)) for req, scheduled, computed in rows)


def _decode_cfg(value: Any) -> dict[str, Any]:
    document = _object(value)
    if _field(document, "max_tokens", _count, 1) < 1:
        raise BadField("max_tokens", "must be 1 or more")
    _field(document, "temperature", float, None)
    _field(document, "stop_token_ids", _ids, None)
    return document


def _engine(value: Any) -> dict[str, Any]:
    document = _object(value)
    for name in ("versions", "precision_switches"):
        _field(document, name, _object, None)
    _field(document, "config", lambda config: _object(json.loads(config) if isinstance(config, str) else config), None)
    return document


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"object expected, found {type(value).__name__}")
    return dict(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, found {type(value).__name__}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int:  # True is an int to isinstance
        raise TypeError(f"integer expected, found {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{value} is negative")
    return value


def _each(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def read_all(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, list):
            raise TypeError(f"list expected, found {type(values).__name__}")
        return tuple(read(value) for value in values)

    return read_all


def _ids(values: Any) -> tuple[int, ...]:
    ids = _each(_count)(values)
    if any(value >= 1 << 32 for value in ids):
        raise ValueError("token ids must fit in 32 unsigned bits")
    return ids


def _prompt(values: Any) -> tuple[int, ...]:
    ids = _ids(values)
    if not ids:
        raise ValueError("at least one token id expected")
    return ids
