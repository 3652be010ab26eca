"""Every question runs against an empty store, says in English what it asks, and takes values only by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from forensics.store import Store

QUESTIONS = sorted((Path(__file__).parent.parent / "forensics" / "sql").glob("*.sql"))
VALUES: dict[str, Any] = {
    "req_id": "a", "run_id": "r", "replica_id": "p", "first": 0, "last": 9, "req_ids": ["a", "b"], "input_sha256": "0",
    "asked_sha256": "0", "path": "x", "sha256": "0", "source_id": None, "id": "0", "replica": None, "model": "m",
    "part_of_id": "a", "prompts": ["0"], "prompt_sha256": "0", "output": "a", "output_sha256": "0", "finish": None,
    "writer": "w",
}  # fmt: skip


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_question(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first, _, query = text.partition("\n")
    assert re.fullmatch(r"-- [A-Z].*\?", first)
    assert not re.search(r"[{}?;%]", query), "named parameters only, one statement"
    names = set(re.findall(r"\$(\w+)", query))
    missing = {name: 0 for name in names if name not in VALUES}
    with Store.in_memory() as store:
        answer = store.ask(path.stem, **VALUES, **missing, not_in_the_file=1)
    assert answer.height == {"counts": 9, "steps_around": 1}.get(path.stem, 0)
    assert len(set(answer.columns)) == len(answer.columns)


def test_the_folder_is_not_empty() -> None:
    assert len(QUESTIONS) >= 19
