"""Dumps of PyTorch's flight recorder, a pickle or JSON: an entry is a collective, or a send, of one rank.

The rank is the number at the end of the file's name, as PyTorch's own reader takes it, if the dump has such a rank.
`start_ts` is when the host made the call, which shows who came late; a duration is there only where NCCL was timed
(TORCH_NCCL_ENABLE_TIMING). When the watchdog noticed start and end is no measurement and is left out.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from forensics.errors import BAD_INPUT, ForensicsError
from forensics.ingest import BEGINNING, Entry, rendered
from forensics.plain_pickle import NotPlain, loads
from forensics.traces import POINT_TO_POINT, collective, element_bytes
from forensics.values import Rejected, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.ingest import Mark

KNOWS_RUN: Final = False
MAX_BYTES: Final = 64 << 20
MOST_ENTRIES: Final = 1 << 20
PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
IN_JSON: Final = re.compile(rb'\s*\{.*"entries"\s*:\s*\[', re.DOTALL)
OWN_NAMES: Final = (b"pg_config", b"pg_status", b"comm_lib_version", b"collective_seq_id")
RANK: Final = re.compile(r"(?<!\d)(\d{1,6})(?:\.json|\.pkl|\.pickle)?$")


def detect(head: bytes) -> bool:
    """Return whether this is a pickle or an object with the recorder's entries."""
    shaped = (PICKLE.match(head) and b"entries" in head) or IN_JSON.match(head)
    return bool(shaped) and any(name in head for name in OWN_NAMES)


def read(path: Path, size: int, start: Mark = BEGINNING) -> Iterator[Entry]:
    """Yield every entry. A dump is written whole: one that is torn, or more than plain data, is refused whole."""
    if size > MAX_BYTES:
        raise ForensicsError(f"{path}: larger than {MAX_BYTES >> 20} MiB; no dump of a flight recorder is", BAD_INPUT)
    with path.open("rb") as file:
        raw = file.read(size)
    try:
        dump = loads(raw) if PICKLE.match(raw) else parse(raw)
    except (NotPlain, Rejected) as fault:
        message = f"{path}: a dump of the flight recorder that cannot be read: {fault}"
        raise ForensicsError(message, BAD_INPUT, "nothing in it was run; write the dump again") from None
    entries = dump.get("entries") if type(dump) is dict else None
    if type(entries) is not list or len(entries) > MOST_ENTRIES:
        raise ForensicsError(f"{path}: no dump of a flight recorder: it has no array of entries", BAD_INPUT)
    rank = _rank(path.name, dump)
    for number, entry in enumerate(entries, 1):
        record = _record(entry, rank)
        yield Entry(number, number - 1, _bytes(entry) if isinstance(record, Rejected) else None, record, size)


def _rank(name: str, dump: dict[str, Any]) -> int | None:
    """Return the rank that a file's name ends in, if some group of the dump has it."""
    found = RANK.search(name)
    groups = dump.get("pg_config")
    known = {
        int(one)
        for group in (groups.values() if type(groups) is dict else ())
        for one in re.findall(r"\d{1,6}", str(group.get("ranks")) if type(group) is dict else "")
    }
    return int(found[1]) if found and int(found[1]) in known else None


def _record(entry: Any, rank: int | None) -> dict[str, Any] | Rejected:
    """Return the collective of an entry. Groups number sends apart from collectives, and each side by itself."""
    if type(entry) is not dict:
        return Rejected("an entry that is no object")
    name, group, created = (entry.get(one) for one in ("profiling_name", "process_group", "time_created_ns"))
    if type(name) is not str:
        return Rejected("an entry without profiling_name")
    op = collective(name)
    took = entry.get("duration_ms")
    record = {
        "kind": "collective",
        "op": op,
        "rank": rank,
        "comm_id": group[0] if type(group) in (list, tuple) and group and type(group[0]) is str else None,
        "seq_no": None if op in POINT_TO_POINT else entry.get("collective_seq_id"),
        "bytes": _size(entry.get("input_sizes"), entry.get("input_dtypes")),
        "start_ts": created / 1e9 if type(created) is int and 0 < created < 1 << 63 else None,
        "comm_ms": took if type(took) in (int, float) else None,
    }
    return {name: value for name, value in record.items() if value is not None}


def _size(sizes: Any, dtypes: Any) -> int | None:
    """Return the bytes of the tensors that a call was given; None where they are not stated in full."""
    if type(sizes) is not list or type(dtypes) is not list or len(sizes) != len(dtypes):
        return None
    total = 0
    for size, dtype in zip(sizes, dtypes, strict=True):
        width = element_bytes(dtype) if type(dtype) is str else None
        if width is None or type(size) not in (list, tuple) or any(type(one) is not int for one in size):
            return None
        total += width * math.prod(size)
    return total


def _bytes(entry: Any) -> bytes:
    try:
        return rendered(entry)
    except RecursionError:
        return b"an entry nested too deeply to be shown"
