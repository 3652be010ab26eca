"""Files into the store: find them, pick their format, file each one whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forensics import ingest
from forensics.compression import packing, unpacked_head
from forensics.errors import BAD_INPUT, ForensicsError
from forensics.filing import Filing
from forensics.registry import members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from forensics.store import Store

    Progress = Callable[[str, int, int], None]

PROGRESS_EVERY: Final = 5000
PIECE: Final = 1 << 20
UTF_16: Final = "UTF-16 text; a log is UTF-8"
UTF_32: Final = "UTF-32 text; a log is UTF-8"
SIGNATURES: Final = {
    b"\xff\xfe\0\0": UTF_32,  # before UTF-16, whose mark it begins with
    b"\0\0\xfe\xff": UTF_32,
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
    b"SQLite format 3\0": "an SQLite database",
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive",
    b"\x7fELF": "a program",
    b"\x89PNG": "a PNG picture",
    b"%PDF": "a PDF document",
    b"\x80\x04": "a Python pickle",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"ARROW1": "an Arrow file",
}
VERDICT: Final = re.compile(rb'"format"\s*:\s*"forensics\.verdict/(\w*)("?)')


@dataclass(frozen=True)
class FileSummary:
    """What became of one file: read = stored + merged + duplicates + quarantined, always.

    `skipped`: why a file or folder found in a folder was not read at all; None for a file that was.
    """

    path: str
    format: str
    sha256: str
    read: int = 0
    stored: int = 0
    merged: int = 0
    duplicates: int = 0
    quarantined: int = 0
    unknown_fields: dict[str, int] = field(default_factory=dict)
    skipped: str | None = None


def load(paths: Sequence[Path], store: Store, progress: Progress | None = None) -> list[FileSummary]:
    """File every log under `paths`. Each file is one transaction; all are recognised before the first is filed."""
    plan: dict[Path, tuple[Path, str, str | None]] = {}
    for path in paths:
        files, unread = _files(path)
        found = [(file, *_recognised(file)) for file in files] + [(file, "", reason) for file, reason in unread]
        if not any(reason is None for _, _, reason in found):
            raise _nothing_readable(path, found)
        for file, name, reason in found:
            plan.setdefault(file.resolve(), (file, name, reason))
    return [
        FileSummary(str(file), "", "", skipped=reason) if reason else _load_file(file, name, store, progress)
        for file, name, reason in plan.values()
    ]


def _files(path: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the files under a path, in order, and the folders that could not be listed.

    Hidden files hold keys, not logs; links must not leave the folder.
    """
    if path.is_file():
        return [path], []
    if not path.is_dir():
        what = "not a regular file" if path.exists() else "no such file"
        raise ForensicsError(f"{path}: {what}", BAD_INPUT, "name a log file, or a folder of them")
    root, files, unread = path.resolve(), list[Path](), list[tuple[Path, str]]()

    def skip(fault: OSError) -> None:
        unread.append((Path(fault.filename), f"cannot be read: {fault.strerror}"))

    for folder, inside, names in os.walk(path, onerror=skip):
        inside[:] = [name for name in inside if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return [file for file in sorted(files) if _is_inside(file, root)], sorted(unread)


def _is_inside(file: Path, root: Path) -> bool:
    """Return whether a regular file lies in the folder. One that cannot be asked counts: opening it tells why."""
    try:
        return stat.S_ISREG(file.stat().st_mode) and file.resolve().is_relative_to(root)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _recognised(path: Path) -> tuple[str, str | None]:
    """Return (format, None), or ('', what the file is instead)."""
    try:
        with path.open("rb") as file:
            head = file.read(ingest.HEAD_BYTES)
    except OSError as fault:
        return "", f"cannot be read: {fault.strerror}"
    for name, member in members(ingest).items():
        if member.detect(head):
            return name, None
    return "", _description(head)


def _description(head: bytes) -> str:
    packed = packing(head)
    if packed is not None:
        inside = unpacked_head(head)
        return f"{packed} of {_description(inside)}" if inside else f"{packed} that cannot be unpacked"
    if not head.strip():
        return "an empty file" if not head else "a blank file"
    if head[8:12] == b"DUCK":
        return "a DuckDB database"
    for magic, name in SIGNATURES.items():
        if head.startswith(magic):
            return name
    stated = VERDICT.search(head) if head.lstrip()[:1] == b"{" else None
    if stated is not None:
        version, closed = stated[1].decode(), stated[2]
        if not closed:
            return "a torn verdict"
        known = version == "1"  # met here only when it is packed
        return "a verdict; unpack it" if known else f"a verdict of another version, forensics.verdict/{version}"
    if head.lstrip()[:1] in (b"{", b"["):
        return "JSON, but not one record a line"
    return "text that is not JSON" if b"\0" not in head[:4096] else "binary data"


def _nothing_readable(path: Path, found: list[tuple[Path, str, str | None]]) -> ForensicsError:
    hint = "a log is JSON Lines (plain, gzip or zstandard) or Parquet; see docs/contract.md"
    if path.is_dir():
        seen = "; ".join(f"{file.name}: {reason}" for file, _, reason in found[:3]) or "it holds no files"
        return ForensicsError(f"{path}: nothing to read here: {seen}", BAD_INPUT, hint)
    reason = str(found[0][2])
    said = reason if reason.startswith("cannot be read") else f"not a log but {reason}"
    return ForensicsError(f"{path}: {said}", BAD_INPUT, hint)


def _load_file(path: Path, name: str, store: Store, progress: Progress | None) -> FileSummary:
    member: Any = members(ingest)[name]
    try:
        with store.transaction():
            earlier = store.ask("sources_of_path", path=str(path))
            size, sha256, source_id = _identified(path, earlier.rows())
            known = store.ask("source", source_id=source_id, sha256=sha256).to_dicts()
            source = known[0] if known else _new_source(store, path, name)
            filing = Filing(store, source["source_id"], source["path"])
            store.remove("quarantine", "source_id", [source["source_id"]])
            file_entry = filing.add_verdict if name == "verdict" else filing.add
            for entry in _reported(member.read(path, size), str(path), size, progress):
                file_entry(entry)
            filing.flush()
            filing.tally.check()
            _sign(store, source, filing, size, sha256)
    except OSError as fault:
        message = f"{path}: cannot be read: {fault.strerror}"
        raise ForensicsError(message, BAD_INPUT, "nothing of it was stored") from None
    tally = filing.tally
    return FileSummary(str(path), name, sha256, **vars(tally))


def _reported(entries: Iterator[Any], path: str, size: int, progress: Progress | None) -> Iterator[Any]:
    for number, entry in enumerate(entries):
        if progress is not None and number % PROGRESS_EVERY == 0:
            progress(path, entry.position, size)
        yield entry
    if progress is not None:
        progress(path, size, size)


def _identified(path: Path, earlier: list[tuple[int, int, str]]) -> tuple[int, str, int | None]:
    """Return (size, sha256, the source that this file has grown from, if any).

    A log that grew is the same source: its old bytes are a prefix of the new ones.
    """
    sha256, done = hashlib.sha256(), 0
    at: dict[int, str] = {}
    with path.open("rb") as file:
        for stop in [*sorted({size for _, size, _ in earlier}), path.stat().st_size]:
            while done < stop and (piece := file.read(min(PIECE, stop - done))):
                sha256.update(piece)
                done += len(piece)
            at[done] = sha256.hexdigest()
    grown_from = [source_id for source_id, size, digest in earlier if at.get(size) == digest]
    return done, at[done], grown_from[-1] if grown_from else None


def _new_source(store: Store, path: Path, name: str) -> dict[str, Any]:
    last = store.ask("sources")["source_id"].max()
    number = 1 if last is None else int(str(last)) + 1
    return {"source_id": number, "path": str(path), "format": name, "stored": 0, "merged": 0}


def _sign(store: Store, source: dict[str, Any], filing: Filing, size: int, sha256: str) -> None:
    """Write what this source is and has given in all: a second look at the same bytes changes nothing."""
    tally = filing.tally
    stored, merged = source["stored"] + tally.stored, source["merged"] + tally.merged
    row = source | {
        "sha256": sha256,
        "bytes": size,
        "read": tally.read,
        "stored": stored,
        "merged": merged,
        "duplicates": tally.read - stored - merged - tally.quarantined,
        "quarantined": tally.quarantined,
        "unknown_fields": json.dumps(tally.unknown_fields, sort_keys=True),
    }
    store.remove("source", "source_id", [source["source_id"]])
    store.insert("source", [row])
