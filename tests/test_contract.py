"""The contract: what is accepted, what is refused and why, one form for one value, and the digests."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forensics.contract import Rejected, asked_sha256, check, docs_markdown, input_sha256, kinds, x_digest
from forensics.digest import token_ids_sha256
from forensics.values import parse
from replay import record

ROOT = Path(__file__).parent.parent
VECTORS = json.loads((ROOT / "schemas" / "digest-vectors.v1.json").read_text(encoding="utf-8"))
STEP = {"kind": "step", "req_id": "a", "step": 0}
REQUEST = {"kind": "request", "req_id": "a"}


def reason(given_record: dict[str, Any]) -> str:
    with pytest.raises(Rejected) as refused:
        check(given_record)
    return refused.value.reason


def test_every_schema_of_a_record_is_a_kind_and_a_json_schema() -> None:
    assert set(kinds()) == {"batch", "collective", "device", "engine", "event", "kernel", "request", "step"}
    for name, kind in kinds().items():
        schema = json.loads((ROOT / "schemas" / f"{name}.v1.json").read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        assert set(kind.identity) <= set(kind.fields)
        assert all(field.description for field in kind.fields.values())
        assert not set(kind.fields) & {"extra", "content_hash", "source_id", "line", "input_sha256", "asked_sha256"}


def test_a_field_name_means_one_type_in_all_kinds() -> None:
    types: dict[str, set[str]] = {}
    for kind in kinds().values():
        for field in kind.fields.values():
            types.setdefault(field.name, set()).add(field.type.label)
    assert {name for name, labels in types.items() if len(labels) > 1} == {"algo"}


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.name)
def test_arrow_schema_and_table_have_the_same_columns(kind: Any) -> None:
    schema: pa.Schema = kind.arrow_schema()
    assert schema.names == list(kind.columns())
    assert all(f'"{name}" ' in kind.ddl() for name in schema.names)
    assert schema.field("source_id").type == pa.int32()


def test_normal_forms() -> None:
    kind, row = check(
        STEP
        | {"margin": 1, "algo_id": 7, "top_logits": [2, 1.5], "row": None, "new": {"b": 1.0, "a": None}}
        | {"plan": {"z": 8, "a": True, "m": 8.0, "f": 0.5, "big": 2**60, "none": None, "text": '"q"'}}
    )
    assert kind == "step"
    assert row.pop("content_hash")
    assert row == {
        "run_id": "", "replica_id": "", "req_id": "a", "step": 0,
        "margin": 1.0, "algo_id": "7", "top_logits": [2.0, 1.5], "extra": '{"new":{"b":1}}',
        "plan": {"a": "true", "big": str(2**60), "f": "0.5", "m": "8", "text": '"q"', "z": "8"},
    }  # fmt: skip
    assert list(row["plan"]) == sorted(row["plan"])
    assert type(row["margin"]) is float


def test_objects_become_canonical_text() -> None:
    _, row = check({"kind": "engine", "run_id": "r", "config": {"b": [1.0, None], "a": {"x": None, "é": 2**60}}})
    assert row["config"] == '{"a":{"é":1152921504606846976},"b":[1,null]}'
    _, row = check(REQUEST | {"shaping_events": [{"b": 1, "a": 2.5}]})
    assert row["shaping_events"] == '[{"a":2.5,"b":1}]'


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"step": True}, "step: a boolean where an integer"),
        ({"step": 1.0}, "step: a number where an integer"),
        ({"step": "1"}, "step: a string where an integer"),
        ({"step": -1}, "step: -1 is negative"),
        ({"engine_step": -1}, "engine_step: -1 is negative"),
        ({"step": 2**63}, "step: an integer beyond 64 bits"),
        ({"step": None}, "kind 'step'"),
        ({"req_id": 5}, "req_id: an integer where a string"),
        ({"req_id": "\ud800"}, "surrogate"),
        ({"margin": "1"}, "margin: a string where a number"),
        ({"margin": True}, "margin: a boolean where a number"),
        ({"margin": float("nan")}, "margin: not a finite number"),
        ({"margin": float("inf")}, "margin: not a finite number"),
        ({"margin": 2**53 + 1}, "cannot hold exactly"),
        ({"margin": 10**400}, "beyond 64 bits"),
        ({"preempted": 1}, "preempted: an integer where a boolean"),
        ({"top_logits": [1.0, None]}, "top_logits: "),
        ({"top_logits": [[1.0]]}, "top_logits: "),
        ({"top_logits": 1.0}, "top_logits: a number where an array of numbers"),
        ({"top_token_ids": [1, True]}, "top_token_ids: "),
        ({"plan": []}, "plan: an array where an object of scalars"),
        ({"plan": {"a": {}}}, "plan: "),
        ({"plan": {"a": float("nan")}}, "plan: not a finite number"),
        ({"plan": {"a": "\udfff"}}, "surrogate"),
        ({"algo_id": 1.5}, "algo_id: a number where a string or an integer"),
        ({"new": float("inf")}, "new: not a finite number"),
        ({"new": {"deep": [2**64]}}, "new: an integer beyond 64 bits"),
        ({"new": "\ud800"}, "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        ({"kind": "steps"}, "unknown kind 'steps'"),
        ({"kind": 5}, "unknown kind 5"),
        ({"kind": ["step"]}, "unknown kind"),
    ],
)
def test_refused(fields: dict[str, Any], said: str) -> None:
    wanted = "step is missing" if said == "kind 'step'" else said
    assert wanted in reason(STEP | fields)


def test_depth() -> None:
    def nested(levels: int) -> Any:
        return {"a": nested(levels - 1)} if levels else 1

    check(STEP | {"new": nested(62)})
    assert "nested deeper than 64" in reason(STEP | {"new": nested(64)})
    assert "nested deeper than 64" in reason({"kind": "event", "what": "w", "detail": nested(64)})


def test_a_reason_never_holds_a_control_character() -> None:
    for fields in ({"\x1b[2J": float("nan")}, {"kind": "\x1b[31m\u202e"}, {"kind": "x" * 10_000}):
        text = reason(STEP | fields)
        assert text.isascii()
        assert text.isprintable()
        assert len(text) < 300


def test_the_form_of_the_article() -> None:
    assert check({"req_id": "a", "step": 3, "ts": 1.5})[0] == "step"
    assert check({"req_id": "a", "raw_prompt_sha256": "00", "truncated": False})[0] == "request"
    assert check({"kind": None, "req_id": "a", "step": 3})[0] == "step"
    for unclear in (
        {},
        {"req_id": "a"},
        {"step": 1},
        {"req_id": "a", "isolation_mode": "x"},
        {"req_id": "a", "new": 1},
    ):
        assert "no kind" in reason(unclear)


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.name)
def test_what_is_required_is_missed(kind: Any) -> None:
    for name in kind.required:
        fields = {other: 0 if kind.fields[other].type.sql in ("BIGINT", "DOUBLE") else "x" for other in kind.required}
        assert check({"kind": kind.name} | fields)[0] == kind.name
        del fields[name]
        assert reason({"kind": kind.name} | fields) == f"{name} is missing"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"a":1,"a":1}', "key 'a' twice"),
        (b'{"a":{"b":1,"b":2}}', "key 'b' twice"),
        (b'{"a":[{"b":1,"b":2}]}', "key 'b' twice"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b'{"a":"\xff"}', "not UTF-8: byte 6"),
        (b"[1]", "an array where an object"),
        (b'{"a":1}{"b":2}', "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":"\x01"}', "not JSON"),
        (b'{"a":01}', "not JSON"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' + b"1" * 5000 + b"}", "beyond 64 bits"),
    ],
)
def test_lines_that_are_not_strict_json(raw: bytes, said: str) -> None:
    with pytest.raises(Rejected) as refused:
        parse(raw)
    assert said in refused.value.reason


def test_content_hash_sees_every_field_and_no_order() -> None:
    def hashed(fields: dict[str, Any]) -> str:
        return str(check(fields)[1]["content_hash"])

    assert hashed(STEP | {"margin": 1, "row": 2}) == hashed({"row": 2, "margin": 1.0, "run_id": ""} | STEP)
    several = [STEP, STEP | {"margin": 1}, STEP | {"margin": 1, "seq": 2}, STEP | {"new": 1}, STEP | {"margin": -0.0}]
    assert len({hashed(one) for one in [*several, STEP | {"margin": 0.0}]}) == 6


def test_digest_vectors() -> None:
    for case in VECTORS["token_ids"]:
        assert token_ids_sha256(case["ids"]) == record.token_ids_sha256(case["ids"]) == case["sha256"]
    for case in VECTORS["x"]:
        assert x_digest(case["ids_sha256"], case["decode_cfg"], case["model_identity"]) == case["x_digest"], case[
            "name"
        ]
        assert hashlib.sha256(case["preimage"].encode()).hexdigest() == case["x_digest"]
        assert input_sha256(case["ids_sha256"].upper(), case["decode_cfg"]) == case["input_sha256"]
        assert hashlib.sha256(case["input_preimage"].encode()).hexdigest() == case["input_sha256"]
    for case in VECTORS["asked"]:
        assert asked_sha256(case["raw_prompt_sha256"], case["decode_cfg_requested"]) == case["asked_sha256"]
        assert hashlib.sha256(case["preimage"].encode()).hexdigest() == case["asked_sha256"]
    assert VECTORS["x"][0]["x_digest"] == VECTORS["x"][1]["x_digest"]


def test_digests_of_a_request_row() -> None:
    ids, digest = [1, 2, 3], token_ids_sha256([1, 2, 3]).upper()
    applied = [{"max_tokens": 16.0, "temperature": 0}, {"temperature": 0.0, "max_tokens": 16}]
    _, with_ids = check(REQUEST | {"effective_token_ids": ids, "decode_cfg_applied": applied[0]})
    _, with_hash = check(REQUEST | {"effective_token_ids_sha256": digest, "decode_cfg_applied": applied[1]})
    assert with_ids["input_sha256"] == with_hash["input_sha256"] == VECTORS["x"][0]["input_sha256"]
    assert with_ids["effective_token_ids_sha256"] == digest.lower()
    assert "input_sha256" not in check(REQUEST | {"effective_token_ids": [1]})[1]
    assert "asked_sha256" in check(REQUEST | {"raw_prompt_sha256": "0", "decode_cfg_requested": {}})[1]


def test_ids_that_do_not_have_their_hash() -> None:
    assert "is not the hash of" in reason(REQUEST | {"output_token_ids": [1], "output_token_ids_sha256": "00"})
    assert "32 unsigned bits" in reason(REQUEST | {"output_token_ids": [-1]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted({name for kind in kinds().values() for name in kind.fields})) | st.text(max_size=4)


@given(st.dictionaries(NAMES, JSON, max_size=8), st.sampled_from([*kinds(), "x", None]))
def test_any_record_is_checked_or_refused(fields: dict[str, Any], kind: str | None) -> None:
    try:
        name, row = check(fields | {"kind": kind})
    except Rejected as refused:
        said = refused.reason
    else:
        said = ""
    if said:
        assert said.isprintable()
        return
    assert set(row) <= set(kinds()[name].columns())
    assert check(fields | {"kind": name})[1] == row
    pa.Table.from_pylist([row | {"source_id": 1, "line": 1}], schema=kinds()[name].arrow_schema()).validate(full=True)


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    said = "parsed"
    try:
        assert isinstance(parse(raw), dict)
    except Rejected as refused:
        said = refused.reason
    assert said.isprintable()


def test_docs_are_generated() -> None:
    path = ROOT / "docs" / "contract.md"
    head, marker, tables = path.read_text(encoding="utf-8").partition("with UPDATE=1 -->\n\n")
    assert marker
    if os.environ.get("UPDATE"):
        path.write_text(head + marker + docs_markdown(), encoding="utf-8")
        tables = docs_markdown()
    assert tables == docs_markdown(), "run UPDATE=1 pytest tests/test_contract.py"
