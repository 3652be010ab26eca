"""One question through the program as it stands (ingest, explain, its JSON), and through the baselines."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.explain import explain
from forensics.load import load
from forensics.reports import json as report
from forensics.store import Store
from tests.accuracy import baselines, rawlog

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What explain said, and what the baselines said. found: codes of all findings; error: why it gave no answer."""

    root_cause: str
    standing: str
    grade: str | None
    found: tuple[str, ...]
    chain: tuple[str, ...]
    error: str | None
    baselines: dict[str, str]


def ask(log: Path, questions: list[tuple[str, str | None]]) -> list[Answer]:
    """Ingest a log once and ask every (request, against). A failure of the program is an answer too: 'undetermined'."""
    records = rawlog.read(log)
    with Store.in_memory() as store:
        load([log], store)
        return [_answer(store, records, request, against) for request, against in questions]


def _answer(store: Store, records: rawlog.Log, request: str, against: str | None) -> Answer:
    out, error = io.StringIO(), None
    said: dict[str, Any] = {"root_cause": "undetermined", "standing": "error", "findings": [], "chain": []}
    try:
        report.render(explain(store, request, against), out)
        said = json.loads(out.getvalue())
    except ForensicsError as fault:
        error = fault.message
    links = said["chain"]
    chain = [link["cause"] for link in links] + [link["effect"] for link in links[-1:]]
    found = tuple(one["code"] for one in said["findings"])
    compared = baselines.answers(records, request, against or (said.get("reference") or {}).get("req_id"))
    return Answer(said["root_cause"], said["standing"], said.get("chain_grade"), found, tuple(chain), error, compared)
