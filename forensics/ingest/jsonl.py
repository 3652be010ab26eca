"""One JSON object a line, plain or packed with gzip or zstandard."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from forensics.compression import Broken, pieces, unpacked_head
from forensics.ingest import BEGINNING, Entry, Mark
from forensics.values import Rejected, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE_BYTES: Final = 16 << 20
KEPT_OF_A_LONG_LINE: Final = 64 << 10
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
NAMES_OF_A_RECORD: Final = (b'"kind"', b'"req_id"')
DOCUMENT: Final = re.compile(rb'"format"\s*:\s*"forensics\.|^\{\s*"schemaVersion"\s*:.*"deviceProperties"\s*:')
MEMBERS_OF_A_DOCUMENT: Final = ("traceEvents", "pg_config")
"""What an object holds that is a whole trace: of torch.profiler, of PyTorch's flight recorder."""


def detect(head: bytes) -> bool:
    """Return whether some line holds an object, or the only line begins like a record of ours."""
    text = unpacked_head(head).removeprefix(BYTE_ORDER_MARK)
    lines = text.split(b"\n")
    if text.lstrip().partition(b"\n")[0].rstrip() in (b"{", b"["):
        return False  # one document over many lines
    for line in lines:
        if line.startswith(b"{"):
            try:
                record = parse(line)
            except Rejected:
                continue
            # A document on one line is an object too, and no log.
            ours = str(record.get("format", "")).startswith("forensics.")
            return not ours and not any(name in record for name in MEMBERS_OF_A_DOCUMENT)
    torn = [line for line in lines if line.startswith(b"{") and not DOCUMENT.search(line)]
    return any(name in line for line in torn for name in NAMES_OF_A_RECORD)


def read(path: Path, size: int, start: Mark = BEGINNING) -> Iterator[Entry]:
    """Yield every line after `start` that is not blank."""
    (line, offset), rest, position = start, b"", 0
    long: _LongLine | None = None
    broken: Broken | None = None
    stream = pieces(path, size, offset)
    while True:
        try:
            piece, position = next(stream)
        except StopIteration:
            break
        except Broken as fault:
            broken = fault
            break
        if long is not None:
            tail, newline, piece = piece.partition(b"\n")
            long.feed(tail)
            if not newline:
                continue
            line += 1
            begun, offset = offset, offset + long.length + 1
            yield Entry(line, begun, long.head, long.rejected(), position, Mark(line, offset))
            long = None
        *whole, rest = (rest + piece).split(b"\n")
        for raw in whole:
            line += 1
            text = raw.removeprefix(BYTE_ORDER_MARK) if offset == 0 else raw
            begun, offset = offset, offset + len(raw) + 1
            if text and not text.isspace():
                yield Entry(line, begun, raw, _judged(text), position, Mark(line, offset))
        if len(rest) > MAX_LINE_BYTES:
            long, rest = _LongLine(rest), b""
    yield from _end(Entry(line + 1, offset, rest, {}, position), long, broken)


def _end(last: Entry, long: _LongLine | None, broken: Broken | None) -> Iterator[Entry]:
    """Yield what stands after the last newline: a whole record, a torn one, or the place where a stream broke."""
    if broken is not None:
        held = long.rejected(f"{broken}; a line was being read") if long else Rejected(str(broken))
        yield last._replace(raw=long.head if long else last.raw, record=held)
    elif long is not None:
        yield last._replace(raw=long.head, record=long.rejected())
    elif last.raw and not last.raw.isspace():
        text = last.raw.removeprefix(BYTE_ORDER_MARK) if last.offset == 0 else last.raw
        judged = _judged(text)
        if isinstance(judged, Rejected):
            judged = Rejected(f"torn last line, no newline and {judged.reason}", judged.length, judged.sha256)
        yield last._replace(record=judged)


def _judged(text: bytes) -> dict[str, object] | Rejected:
    if len(text) > MAX_LINE_BYTES:
        return _LongLine(text).rejected()
    try:
        return parse(text)
    except Rejected as rejected:
        return rejected


class _LongLine:
    """A line beyond the limit: its beginning, length and hash, never all of it at once."""

    def __init__(self, begun: bytes) -> None:
        self.head = begun[:KEPT_OF_A_LONG_LINE]
        self.length = len(begun)
        self._sha256 = hashlib.sha256(begun)

    def feed(self, more: bytes) -> None:
        self.length += len(more)
        self._sha256.update(more)

    def rejected(self, reason: str = f"longer than {MAX_LINE_BYTES >> 20} MiB") -> Rejected:
        return Rejected(reason, self.length, self._sha256.hexdigest())
