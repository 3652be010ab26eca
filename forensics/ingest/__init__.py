"""Log formats: a file in here is a format, recognised by its content and read as a stream of records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.values import Rejected

HEAD_BYTES = 1 << 20
"""How much of the beginning of a file `detect` is given, still packed."""


class Mark(NamedTuple):
    """A place in a file up to which it cannot change when it grows: after `line` lines, at `offset` once unpacked."""

    line: int = 0
    offset: int = 0


BEGINNING = Mark()


class Entry(NamedTuple):
    """One record of a file, or why there is none in its place.

    `line` counts from 1. `offset` counts bytes of the unpacked file, or rows. `position`: bytes of the file read so
    far. `raw`: the bytes as they stand; None where `rendered` gives them (a row of a columnar file has none).
    `end`: where reading can go on when the file has grown; None if this entry itself may grow, or nothing can.
    """

    line: int
    offset: int
    raw: bytes | None
    record: dict[str, Any] | Rejected
    position: int
    end: Mark | None = None


def rendered(record: dict[str, Any]) -> bytes:
    """Return the JSON that stands in for a record without bytes of its own, with what JSON cannot hold as text."""
    try:
        return json.dumps(record, default=str).encode()
    except (TypeError, ValueError):  # a key that is neither a string nor a number
        return ascii(record).encode()


class Format(Protocol):
    """What a file in this folder offers.

    One whose records know no run, since another tool wrote them, also says `KNOWS_RUN = False`: forensics/subject.py.
    """

    def detect(self, head: bytes) -> bool:
        """Return whether a file that begins so is of this format. Formats exclude each other."""

    def read(self, path: Path, size: int, start: Mark) -> Iterator[Entry]:
        """Yield what is in the first `size` bytes; what a live writer appends meanwhile belongs to the next time.

        `start`: an `end` of an entry of the same file when it was shorter. A format that gave none begins at the
        beginning.
        """
