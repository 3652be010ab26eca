"""A verdict of a replay: one JSON document, filed beside the log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from forensics.errors import BAD_INPUT, ForensicsError
from forensics.ingest import BEGINNING, Entry
from forensics.values import Rejected, found, parse, shown
from replay.prove import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.ingest import Mark

FORMAT: Final = "forensics.verdict/1"
MAX_BYTES: Final = 64 << 20
FIELDS: Final = {
    **dict.fromkeys(("req_id", "run_id", "case_sha256"), (str, "a string")),
    "reference": (dict, "an object"),
    **dict.fromkeys(("factors", "trials", "controls", "limits"), (list, "an array")),
}
"""What a field is, unless it is absent or null. What is in an array is left to the reader of the verdict."""
_STATED: Final = re.compile(rb'"format"\s*:\s*"forensics\.verdict/1"')


def detect(head: bytes) -> bool:
    """Return whether this is an object that says it is a verdict."""
    return head.lstrip()[:1] == b"{" and _STATED.search(head) is not None


def read(path: Path, size: int, start: Mark = BEGINNING) -> Iterator[Entry]:
    """Yield the document as one entry."""
    if size > MAX_BYTES:
        raise ForensicsError(f"{path}: larger than {MAX_BYTES >> 20} MiB; this is no verdict", BAD_INPUT)
    with path.open("rb") as file:
        raw = file.read(size)
    try:
        document = parse(raw)
    except Rejected as rejected:
        message = f"{path}: a verdict that is torn or damaged: {rejected.reason}"
        raise ForensicsError(message, BAD_INPUT, _HINT) from None
    wrong = _fault(document)
    if wrong is not None:
        raise ForensicsError(f"{path}: a verdict {wrong}", BAD_INPUT, _HINT)
    yield Entry(1, 0, raw, document, size)


def _fault(document: dict[str, Any]) -> str | None:
    """Return what is wrong with a document that should be a verdict, or None."""
    outcome = document.get("outcome")
    if document.get("format") != FORMAT or not isinstance(outcome, str):
        return "without an outcome"
    if outcome not in OUTCOMES:
        return f"whose outcome is none that we know: {shown(outcome)}"
    for name, (kind, wanted) in FIELDS.items():
        value = document.get(name)
        if value is not None and type(value) is not kind:
            return f"whose {name} is {found(value)} where {wanted} should be"
    return None


_HINT: Final = "make it again with `python -m replay case.json -o verdict.json`"
