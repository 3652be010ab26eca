"""Which files under a path are evidence, in which format, and what the others are instead."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final, NamedTuple

from forensics import ingest
from forensics.compression import packing, unpacked_head
from forensics.errors import BAD_INPUT, ForensicsError
from forensics.registry import members

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


class Found(NamedTuple):
    """A file or folder. format: '' where `reason` says why it cannot be read. named: the user gave this very path."""

    path: Path
    format: str
    reason: str | None
    named: bool


def find(path: Path) -> list[Found]:
    """Return what is under a path, in order. Raises ForensicsError when none of it can be read."""
    files, unread = _files(path)
    found = [Found(file, *_recognised(file), named=file == path) for file in files]
    found += [Found(file, "", reason, named=False) for file, reason in unread]
    if not any(one.reason is None for one in found):
        raise _nothing_readable(path, found)
    return found


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


def _nothing_readable(path: Path, found: list[Found]) -> ForensicsError:
    hint = "a log is JSON Lines (plain, gzip or zstandard) or Parquet; see docs/contract.md; traces: docs/traces.md"
    if path.is_dir():
        seen = "; ".join(f"{one.path.name}: {one.reason}" for one in found[:3]) or "it holds no files"
        return ForensicsError(f"{path}: nothing to read here: {seen}", BAD_INPUT, hint)
    reason = str(found[0].reason)
    said = reason if reason.startswith("cannot be read") else f"not a log but {reason}"
    return ForensicsError(f"{path}: {said}", BAD_INPUT, hint)
