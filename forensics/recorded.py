"""What a recording holds: counted from its files line by line, never all of it in memory.

These files come from our own recorder a moment ago, so lines are recognised, not judged: `forensics ingest` does that.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forensics.compression import Broken, pieces
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
KIND = re.compile(rb'"kind":\s*"(\w+)"')
REQUEST = re.compile(rb'"run_id":\s*"([^"]*)".*?"req_id":\s*("(?:[^"\\]|\\.)*")')
LONGEST_LINE = 16 << 20


@dataclass(frozen=True)
class Cost:
    """What recorders say of themselves, over all processes: seconds in hooks, of CPU to write, and of the run.

    wall_s is that of the longest: processes record at the same time.
    """

    hook_s: float
    writer_cpu_s: float
    wall_s: float

    def share(self) -> float | None:
        """Return which part of the time the serving threads spent in hooks; None where that is not on record."""
        return self.hook_s / self.wall_s if self.wall_s else None


@dataclass
class Recording:
    """What a recorded command left: its exit code, the files written, records by kind, and what was lost.

    exit_code: as a shell gives it, 128 + n after signal n. requests: how many requests the records are about.
    bytes: size of the files on disk. dropped, faults: records and hooks that failed. thinned: records left out as the
    settings ask. damaged: files that could not be read to the end.
    """

    exit_code: int
    files: tuple[Path, ...]
    bytes: int = 0
    records: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    dropped: int = 0
    faults: int = 0
    thinned: int = 0
    cost: Cost | None = None
    damaged: tuple[Path, ...] = ()

    @property
    def reported(self) -> bool:
        """Return whether an engine's recorder wrote its engine record."""
        return self.records["engine"] > 0


def is_recording(path: Path) -> bool:
    """Return whether a file is named as recorders name theirs."""
    return path.name.endswith(SUFFIXES)


def summary(exit_code: int, files: Sequence[Path]) -> Recording:
    """Count what is in the files of a recording."""
    found = Recording(exit_code, tuple(files))
    requests: set[tuple[bytes, bytes]] = set()
    told = _Told()
    damaged = []
    for path in files:
        try:
            size = path.stat().st_size
            found.bytes += size
            for line in _lines(path, size):
                kind = KIND.search(line)
                if kind is None:
                    continue
                found.records[kind[1].decode()] += 1
                if named := REQUEST.search(line):
                    requests.add((named[1], named[2]))
                if kind[1] == b"event":
                    told.note(line)
        except (Broken, ForensicsError, OSError):
            damaged.append(path)
    found.requests, found.damaged = len(requests), tuple(damaged)
    found.dropped, found.faults, found.thinned = (one.total() for one in (told.drops, told.faults, told.thinned))
    found.cost = told.cost()
    return found


class _Told:
    """What each writer says of itself. Its counts run from its start, so its highest one holds."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.thinned: Counter[str] = Counter()
        self.costs: dict[str, dict[str, Any]] = {}

    def note(self, line: bytes) -> None:
        """Take notice of one event."""
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return
        what, detail, writer = event.get("what"), event.get("detail"), str(event.get("writer"))
        if not isinstance(detail, dict):
            return
        if what == "drops":
            self.drops[writer] = max(self.drops[writer], int(_number(detail.get("dropped"))))
        elif what == "recorder_fault":
            self.faults[writer] = max(self.faults[writer] + 1, int(_number(detail.get("count"))))
        elif what == "thinned":
            self.thinned[writer] = max(self.thinned[writer], int(_number(detail.get("records"))))
        elif what == "recorder_cost":
            self.costs[writer] = detail  # later lines hold the later totals

    def cost(self) -> Cost | None:
        """Return what the last word of every writer adds up to; None where no recorder says."""
        if not self.costs:
            return None
        hooks, writing, wall = (
            [_number(one.get(name)) for one in self.costs.values()] for name in ("hook_s", "writer_cpu_s", "wall_s")
        )
        return Cost(sum(hooks), sum(writing), max(wall))


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def _lines(path: Path, size: int) -> Iterator[bytes]:
    """Yield the whole lines; a torn last one, and what is longer than any record, is left to ingest."""
    rest = b""
    for piece, _ in pieces(path, size):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > LONGEST_LINE:
            rest = b""
