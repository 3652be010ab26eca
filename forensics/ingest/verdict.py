"""A verdict of a replay: one JSON document, filed beside the log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from forensics.errors import BAD_INPUT, ForensicsError
from forensics.ingest import Entry
from forensics.values import Rejected, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT: Final = "forensics.verdict/1"
MAX_BYTES: Final = 64 << 20
_STATED: Final = re.compile(rb'"format"\s*:\s*"forensics\.verdict/1"')


def detect(head: bytes) -> bool:
    """Return whether this is an object that says it is a verdict."""
    return head.lstrip()[:1] == b"{" and _STATED.search(head) is not None


def read(path: Path, size: int) -> Iterator[Entry]:
    """Yield the document as one entry."""
    if size > MAX_BYTES:
        raise ForensicsError(f"{path}: larger than {MAX_BYTES >> 20} MiB; this is no verdict", BAD_INPUT)
    with path.open("rb") as file:
        raw = file.read(size)
    try:
        document = parse(raw)
    except Rejected as rejected:
        raise ForensicsError(f"{path}: a verdict that cannot be read: {rejected.reason}", BAD_INPUT, _HINT) from None
    if document.get("format") != FORMAT or not isinstance(document.get("outcome"), str):
        raise ForensicsError(f"{path}: a verdict without an outcome", BAD_INPUT, _HINT)
    yield Entry(1, 0, raw, document, size)


_HINT: Final = "make it again with `python -m replay case.json -o verdict.json`"
