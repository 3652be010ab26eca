"""A verdict is recognised by what it says it is, and refused when it is broken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from forensics.errors import ForensicsError
from forensics.ingest import verdict

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = {"format": "forensics.verdict/1", "outcome": "proven", "trials": [{"a": 1}]}


@pytest.mark.parametrize("indent", [None, 2])
def test_whole(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(WHOLE, indent=indent))
    assert verdict.detect(path.read_bytes())
    (entry,) = verdict.read(path, path.stat().st_size)
    assert entry.record == WHOLE
    assert entry.raw == path.read_bytes()


@pytest.mark.parametrize(
    "head", [b"", b"[]", b'{"kind":"event","what":"forensics.verdict/1"}', b'{"format":"forensics.case/1"}']
)
def test_something_else(head: bytes) -> None:
    assert not verdict.detect(head)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(WHOLE)[:-3],
        json.dumps(WHOLE | {"outcome": 1}),
        '{"format":"forensics.verdict/1"}',
        '{"a":{"format":"forensics.verdict/1"},"outcome":"x"}',
        '{"format":"forensics.verdict/1","outcome":"x","outcome":"y"}',
    ],
)
def test_broken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(text)
    assert verdict.detect(path.read_bytes())
    with pytest.raises(ForensicsError) as error:
        list(verdict.read(path, path.stat().st_size))
    assert error.value.exit_code == 3
    assert str(path) in error.value.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": "certain"}, {"req_id": 1}, {"run_id": ["r"]}, {"case_sha256": {}}, {"reference": "idle-1"},
        {"factors": "batch.rows"}, {"trials": {}}, {"controls": 1}, {"limits": "one"},
    ],
)  # fmt: skip
def test_a_field_of_another_form_is_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(WHOLE | wrong))
    (name,) = wrong
    with pytest.raises(ForensicsError, match=f"a verdict whose {name} is ") as error:
        list(verdict.read(path, path.stat().st_size))
    assert error.value.exit_code == 3


def test_null_is_absent_and_lists_are_not_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    whole = WHOLE | dict.fromkeys(verdict.FIELDS) | {"trials": [{"name": "control"}, "odd"], "null": None}
    path.write_text(json.dumps(whole))
    (entry,) = verdict.read(path, path.stat().st_size)
    assert entry.record == whole


def test_too_large(tmp_path: Path) -> None:
    with pytest.raises(ForensicsError, match="larger than 64 MiB"):
        list(verdict.read(tmp_path / "v.json", verdict.MAX_BYTES + 1))
