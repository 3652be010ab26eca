"""The execution contract: what a record may say, and all that follows from it.

`schemas/*.v1.json` is the one source of truth. Arrow schemas, tables, the check of a row, the digests and the
reference in `docs/contract.md` are derived here and nowhere else. This module knows neither files nor stores; the
policies that it enforces are told in words at the head of `docs/contract.md`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from forensics.digest import DERIVED, derive
from forensics.digest import asked_sha256 as asked_sha256
from forensics.digest import input_sha256 as input_sha256
from forensics.digest import x_digest as x_digest
from forensics.values import TYPES, FieldType, found, json_text, lean, shown
from forensics.values import Rejected as Rejected

Row = dict[str, Any]
"""Column → value of one checked record. An absent column is an absent field."""

ENVELOPE: Final = ("seq", "writer", "clock_id", "mono_ns", "ts")
"""How a line was written, not what it says: merging records differ in these without contradiction."""
COUNTERS: Final = ("step", "engine_step")
END_OF_TIME: Final = 1e11
"""Unix seconds, in the year 5138: beyond it, and before 0, stands no time but a mistake of unit or clock."""
VIEWS: Final = ("request", "kernel", "collective")
"""Kinds whose name is a view of what their rows say together with others."""
ORDINALS: Final = ("seq", "writer", "seq_no")
"""Identity columns that tell records apart by position. A record without them is identified by its content."""
OWN_COLUMNS: Final = {"extra": "VARCHAR", "content_hash": "VARCHAR", "source_id": "INTEGER", "line": "BIGINT"}


@dataclass(frozen=True)
class Field:
    """One property of a record kind."""

    name: str
    type: FieldType
    unit: str
    description: str


@dataclass(frozen=True)
class Kind:
    """One record kind: its fields in the schema's order, what identifies a record, whether partial records merge."""

    name: str
    description: str
    fields: dict[str, Field]
    identity: tuple[str, ...]
    ordinals: tuple[str, ...]
    required: tuple[str, ...]
    times: tuple[str, ...]
    merge: bool

    @property
    def table(self) -> str:
        """Return the table of the rows as written. Some are asked as views: forensics.binding, forensics.placing."""
        return f"stated_{self.name}" if self.name in VIEWS else self.name

    def columns(self) -> dict[str, str]:
        """Return {column: SQL type}: the fields, what is derived from them, unknown fields, and where a row is from."""
        fields = {name: field.type.sql for name, field in self.fields.items()}
        return fields | dict.fromkeys(DERIVED if self.name == "request" else (), "VARCHAR") | OWN_COLUMNS

    def not_null(self) -> set[str]:
        """Return the columns that every row has."""
        return {*self.required, "run_id", "replica_id", "content_hash", "source_id", "line"}

    def ddl(self) -> str:
        """Return the statement that creates the table."""
        never_null = self.not_null()
        lines = [f'"{c}" {t}{" NOT NULL" if c in never_null else ""}' for c, t in self.columns().items()]
        return f'CREATE TABLE "{self.table}" (\n  ' + ",\n  ".join(lines) + "\n)"

    def arrow_schema(self) -> Any:
        """Return the Arrow schema of the table."""
        return arrow_schema(self.columns())

    def key(self, row: Row) -> tuple[Any, ...]:
        """Return what identifies a row among the rows of its kind."""
        return tuple([row.get(name) for name in self.key_columns(row)])

    def key_columns(self, row: Row) -> tuple[str, ...]:
        """Return the columns that identify this row: its identity, or its content where an ordinal is absent."""
        for name in self.ordinals:
            if name not in row:
                return ("content_hash",)
        return self.identity


def arrow_schema(columns: dict[str, str]) -> Any:
    """Return the Arrow schema for {column: SQL type}."""
    import pyarrow as pa

    text = pa.string()
    types = {
        "VARCHAR": text,
        "BIGINT": pa.int64(),
        "INTEGER": pa.int32(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "BLOB": pa.binary(),
        "VARCHAR[]": pa.list_(text),
        "BIGINT[]": pa.list_(pa.int64()),
        "DOUBLE[]": pa.list_(pa.float64()),
        "MAP(VARCHAR, VARCHAR)": pa.map_(text, text),
    }
    return pa.schema([(name, types[sql]) for name, sql in columns.items()])


def schema_directory() -> Path:
    """Return where the schemas are: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    shipped = package / "schemas"
    return shipped if shipped.is_dir() else package.parent / "schemas"


@functools.cache
def kinds() -> dict[str, Kind]:
    """Return the record kinds by name, from the schemas that have an identity."""
    found = {}
    for path in sorted(schema_directory().glob("*.v1.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(schema, dict) and "identity" in schema:
            found[schema["title"]] = _kind(schema)
    return found


def _kind(schema: dict[str, Any]) -> Kind:
    properties = {name: spec for name, spec in schema["properties"].items() if name != "kind"}
    return Kind(
        name=schema["title"],
        description=schema["description"],
        fields={
            name: Field(name, TYPES[_type_name(spec)], spec.get("unit", ""), spec["description"])
            for name, spec in properties.items()
        },
        identity=tuple(schema["identity"]),
        ordinals=tuple(name for name in schema["identity"] if name in ORDINALS),
        required=tuple(name for name in schema["required"] if name != "kind"),
        times=tuple(name for name in properties if name == "ts" or name.endswith("_ts")),
        merge=schema["merge"],
    )


def _type_name(spec: dict[str, Any]) -> str:
    declared = spec["type"]
    if isinstance(declared, list):
        return " or ".join(declared)
    if declared == "array":
        item = spec["items"]["type"]
        return "json array" if item == "object" else f"array of {item}"
    if declared == "object":
        return "map" if "additionalProperties" in spec else "json"
    return str(declared)


def check(record: dict[str, Any]) -> tuple[str, Row]:
    """Return the kind and the normalised row of a record, or raise Rejected with the first reason."""
    kind = kinds()[kind_of(record)]
    fields = kind.fields
    row: Row = {}
    extra: dict[str, Any] = {}
    for name, value in record.items():
        if value is None or name == "kind":
            continue
        field = fields.get(name)
        try:
            if field is None:
                extra[name] = lean(value, 2)
            else:
                row[name] = field.type.read(value)
        except TypeError:
            wanted = field.type.label if field else "JSON"
            raise Rejected(f"{shown(name)[1:-1]}: {found(value)} where {wanted} should be") from None
        except (ValueError, OverflowError) as fault:
            raise Rejected(f"{shown(name)[1:-1]}: {fault}") from None
    for name in COUNTERS:
        if row.get(name, 0) < 0:
            raise Rejected(f"{name}: {row[name]} is negative")
    for name in kind.times:
        if not 0 <= row.get(name, 0) < END_OF_TIME:
            raise Rejected(f"{name}: {row[name]} is no time in Unix seconds")
    for name, judge in _MEMBERS.items():
        if name in row:
            judge(record[name])
    for name in kind.required:
        if name not in row:
            raise Rejected(f"{name} is missing")
    row.setdefault("run_id", "")
    row.setdefault("replica_id", "")
    if extra:
        row["extra"] = json_text(extra)
    row["content_hash"] = content_hash(kind.name, row)
    if kind.name == "request":
        derive(row)
    return kind.name, row


def _judge_decode_cfg(value: dict[str, Any]) -> None:
    temperature = value.get("temperature")
    if temperature is not None and type(temperature) not in (int, float):
        raise Rejected(f"decode_cfg_applied.temperature: {found(temperature)} where a number should be")


def _judge_observes(value: dict[str, Any]) -> None:
    for names in value.values():
        if names is not None and (type(names) is not list or any(type(name) is not str for name in names)):
            raise Rejected(f"observes: {found(names)} where an array of strings should be")


_MEMBERS: Final = {"decode_cfg_applied": _judge_decode_cfg, "observes": _judge_observes}
"""Objects that we read into, and what their members must be. Each already has its normal form."""


def kind_of(record: dict[str, Any]) -> str:
    """Return the kind that a record states or, in the article's form, the kind that its fields tell."""
    stated = record.get("kind")
    if type(stated) is str and stated in kinds():
        return stated
    if stated is not None:
        raise Rejected(f"unknown kind {shown(stated)}")
    if record.get("req_id") is not None:
        if record.get("step") is not None:
            return "step"
        if any(record.get(name) is not None for name in _request_only()):
            return "request"
    raise Rejected("no kind, and the fields do not tell: neither req_id with step, nor req_id with a request's field")


@functools.cache
def _request_only() -> frozenset[str]:
    return frozenset(kinds()["request"].fields.keys() - kinds()["step"].fields.keys())


def content_hash(kind: str, row: Row) -> str:
    """Return blake2b-128 over the normalised content: equal for one record in JSONL and in Parquet."""
    try:
        return hashlib.blake2b(json_text([kind, row]).encode(), digest_size=16).hexdigest()
    except UnicodeEncodeError:
        raise Rejected("a string holds half of a surrogate pair, which is no character") from None


def docs_markdown() -> str:
    """Return the reference of all record kinds, as it stands in docs/contract.md below its hand-written head."""
    return "\n".join(_kind_markdown(kind) for kind in kinds().values())


def _kind_markdown(kind: Kind) -> str:
    merge = "Partial records of one identity merge." if kind.merge else "One record each."
    lines = [
        f"## {kind.name}",
        "",
        f"{kind.description} {merge}",
        "",
        f"Identity: {', '.join(f'`{name}`' for name in kind.identity)}. Required: "
        f"{', '.join(f'`{name}`' for name in ('kind', *kind.required))}.",
        "",
        "| field | type | unit | meaning |",
        "|---|---|---|---|",
    ]
    for field in kind.fields.values():
        label = field.type.label.removeprefix("an ").removeprefix("a ")
        meaning = field.description.replace("|", "\\|")
        lines.append(f"| `{field.name}` | {label} | {field.unit} | {meaning} |")
    return "\n".join(lines) + "\n"
