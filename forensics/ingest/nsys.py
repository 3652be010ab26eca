"""SQLite exports of Nsight Systems: device kernels, with the operator and the engine step that their launch lies in.

A launch is found by its correlation, and the NVTX ranges around it by thread and time: the innermost one of an
operator (`aten::mm, op_id = …`, as torch emits them) names it, `engine_step=17` the step. Times are Unix seconds where
the export says when its session began, else nanoseconds of the session, on a clock of its own. An export states no
rank, and without the payload of NCCL's ranges no communicator: kernels of NCCL are kernels here, and no collectives.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from forensics.errors import BAD_INPUT, ForensicsError
from forensics.ingest import BEGINNING, Entry
from forensics.traces import are_sizes, launch, marked_step, product_of
from forensics.values import Rejected, parse_any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.ingest import Mark

KNOWS_RUN: Final = False
MAGIC: Final = b"SQLite format 3\0"
KERNELS: Final = "CUPTI_ACTIVITY_KIND_KERNEL"
SESSION: Final = "TARGET_INFO_SESSION_START_TIME"
LAUNCHES: Final = "CUPTI_ACTIVITY_KIND_RUNTIME"
RANGES: Final = "NVTX_EVENTS"
DEEPEST: Final = 200
"""Open ranges of one thread that are looked at, the innermost."""
SESSION_CLOCK: Final = "nsys session"
OPERATOR: Final = re.compile(r"(\w+::\w+), (?:seq|op_id) = \d")
SIZES: Final = re.compile(r", sizes = (\[[\d\[\], ]*\])")
FUNCTIONS: Final = ("min", "count", "coalesce", "substr")
MOST_WORK: Final = 20_000
STEPS_AT_ONCE: Final = 1_000_000
"""Instructions of SQLite's machine: so many times so many are minutes; a file made to keep it busy is given up then."""
BY_THREAD: Final = f"""
SELECT k.start, k.end, k.deviceId, k.streamId, s.value AS name, k.gridX, k.gridY, k.gridZ, k.blockX, k.blockY, k.blockZ,
       l.thread, l.at
FROM {KERNELS} k
LEFT JOIN StringIds s ON s.id = coalesce(k.demangledName, k.shortName)
LEFT JOIN (
  SELECT correlationId, globalTid / 16777216 AS process, CAST(globalTid AS INTEGER) AS thread,
         CAST(min(start) AS INTEGER) AS at
  FROM {LAUNCHES} GROUP BY 1, 2
) l ON l.correlationId = k.correlationId AND l.process = k.globalPid / 16777216
ORDER BY l.thread, l.at, k.start
"""  # noqa: S608 - names of ours
WITHOUT_LAUNCHES: Final = f"""
SELECT k.start, k.end, k.deviceId, k.streamId, s.value AS name, k.gridX, k.gridY, k.gridZ, k.blockX, k.blockY, k.blockZ,
       NULL AS thread, NULL AS at
FROM {KERNELS} k LEFT JOIN StringIds s ON s.id = coalesce(k.demangledName, k.shortName)
ORDER BY k.start
"""  # noqa: S608 - names of ours
OPEN_RANGES: Final = f"""
SELECT CAST(n.globalTid AS INTEGER) AS thread, CAST(n.start AS INTEGER) AS at, CAST(n.end AS INTEGER) AS until,
       substr(coalesce(n.text, s.value), 1, 4096) AS name
FROM {RANGES} n LEFT JOIN StringIds s ON s.id = n.textId
WHERE n.end IS NOT NULL AND n.globalTid IS NOT NULL
ORDER BY 1, 2, 3 DESC
"""  # noqa: S608 - names of ours


def detect(head: bytes) -> bool:
    """Return whether this is an SQLite database with tables of Nsight Systems."""
    return head.startswith(MAGIC) and any(name.encode() in head for name in (KERNELS, SESSION, "META_DATA_EXPORT"))


def read(path: Path, size: int, start: Mark = BEGINNING) -> Iterator[Entry]:
    """Yield every kernel, by the thread that launched it and in its order. A damaged export is refused whole."""
    try:
        with contextlib.closing(_opened(path)) as export:
            held = {row["name"] for row in export.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if KERNELS not in held:
                message = f"{path}: an export of Nsight Systems without kernels"
                raise ForensicsError(message, BAD_INPUT, "profile with --trace=cuda,nvtx and export that")
            total = max(export.execute(f"SELECT count(*) FROM {KERNELS}").fetchone()[0], 1)  # noqa: S608
            epoch = _session_start(export) if SESSION in held else None
            for number, (row, around) in enumerate(_launched(export, held), 1):
                record = _record(row, around, epoch)
                raw = ascii(dict(row)).encode() if isinstance(record, Rejected) else None
                yield Entry(number, number - 1, raw, record, size * number // total)
    except sqlite3.Error as fault:
        said = "it keeps SQLite busy beyond reason" if str(fault) == "interrupted" else str(fault)
        message = f"{path}: an export of Nsight Systems that cannot be read: {said}"
        raise ForensicsError(message, BAD_INPUT, "export it again: nsys export --type sqlite") from None


def _opened(path: Path) -> sqlite3.Connection:
    """Open an export to be read, and for nothing else: what is in it came from strangers."""
    export = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True)
    export.execute("PRAGMA trusted_schema = OFF")
    export.execute("PRAGMA cell_size_check = ON")
    export.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 16 << 20)
    export.set_authorizer(_allowed)
    work = iter(range(MOST_WORK))
    export.set_progress_handler(lambda: next(work, None) is None, STEPS_AT_ONCE)
    export.text_factory = lambda raw: raw.decode("utf-8", "replace")
    export.row_factory = sqlite3.Row
    return export


def _allowed(action: int, _one: str | None, name: str | None, *_: str | None) -> int:
    allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
    allowed = allowed or (action == sqlite3.SQLITE_FUNCTION and name in FUNCTIONS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _session_start(export: sqlite3.Connection) -> int | None:
    rows = export.execute(f"SELECT utcEpochNs FROM {SESSION}").fetchmany(2)  # noqa: S608 - a name of ours
    return rows[0][0] if len(rows) == 1 and type(rows[0][0]) is int and rows[0][0] > 0 else None


def _launched(export: sqlite3.Connection, held: set[str]) -> Iterator[tuple[sqlite3.Row, list[str]]]:
    """Yield every kernel with the names of the ranges around its launch, the outermost first.

    Both come sorted by thread and time: only the ranges that are open are held.
    """
    if LAUNCHES not in held:
        yield from ((row, []) for row in export.execute(WITHOUT_LAUNCHES))
        return
    ranges = iter(export.execute(OPEN_RANGES) if RANGES in held else ())
    ahead: sqlite3.Row | None = next(ranges, None)
    around: list[sqlite3.Row] = []
    for row in export.execute(BY_THREAD):
        if row["thread"] is None or row["at"] is None:
            yield row, []
            continue
        while ahead is not None and (ahead["thread"], ahead["at"]) <= (row["thread"], row["at"]):
            around = [*_still_open(around, ahead), ahead][-DEEPEST:]
            ahead = next(ranges, None)
        around = _still_open(around, row)
        yield row, [str(one["name"]) for one in around]


def _still_open(ranges: list[sqlite3.Row], at: sqlite3.Row) -> list[sqlite3.Row]:
    return [one for one in ranges if one["thread"] == at["thread"] and one["until"] >= at["at"]]


def _record(row: sqlite3.Row, around: list[str], epoch: int | None) -> dict[str, Any] | Rejected:
    begins, ends, name = row["start"], row["end"], row["name"]
    if type(name) is not str or type(begins) is not int or type(ends) is not int or not 0 <= ends - begins < 1 << 62:
        return Rejected("a kernel without name, start and end")
    geometry = [row[f"{of}{axis}"] for of in ("grid", "block") for axis in "XYZ"]
    record: dict[str, Any] = {
        "kind": "kernel",
        "name": name,
        "dur_us": (ends - begins) / 1e3,
        "device_index": row["deviceId"],
        "stream": row["streamId"],
        "launch": launch(geometry[:3], geometry[3:]) if are_sizes(geometry) else None,
        **_operator(around),
    }
    steps = {step for one in around if (step := marked_step(one)) is not None}
    if len(steps) == 1:
        record["engine_step"] = steps.pop()
    record |= {"clock_id": SESSION_CLOCK, "mono_ns": begins} if epoch is None else {"start_ts": (epoch + begins) / 1e9}
    return {field: value for field, value in record.items() if value is not None}


def _operator(around: list[str]) -> dict[str, Any]:
    """Return the innermost operator of torch, and its shape where it was emitted with its sizes."""
    for name in reversed(around):
        if operator := OPERATOR.match(name):
            sizes = SIZES.search(name)
            try:
                shape = product_of(operator[1], parse_any(sizes[1].encode())) if sizes else None
            except Rejected:
                shape = None
            return {"op": operator[1], "shape": shape}
    return {}
