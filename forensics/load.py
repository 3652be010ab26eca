"""Files into the store, each one whole or not at all; of a file that grew, only what is new."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from forensics import ingest
from forensics.binding import bind, unbind
from forensics.errors import BAD_INPUT, ForensicsError
from forensics.files import find
from forensics.filing import Filing, Tally
from forensics.ingest import BEGINNING, Mark
from forensics.registry import members
from forensics.subject import UNSAID, Subject, applied, knows_run, said_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from forensics.files import Found
    from forensics.store import Store

    Progress = Callable[[str, int, int], None]

PROGRESS_EVERY: Final = 5000
PIECE: Final = 1 << 20


@dataclass(frozen=True)
class FileSummary:
    """What became of the rows of one file: read = stored + merged + duplicates + quarantined, always.

    A row that was on file before, from this file or another, is a duplicate. `skipped`: why a file or folder was not
    read; None for one that was. `named`: the user gave this very path, and did not only name a folder above it.
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
    named: bool = False


class _Unusable(Exception):  # noqa: N818 - a fact about the file
    """The file cannot be read to its end, or is no document of its format. Nothing of it may stay."""

    def __init__(self, error: ForensicsError) -> None:
        self.error = error


def load(
    paths: Sequence[Path], store: Store, progress: Progress | None = None, subject: Subject = UNSAID
) -> list[FileSummary]:
    """File every log under `paths`; then bind request records without a run to the requests that they speak of.

    Each file is one transaction; all are recognised before the first is filed. A file that turns out to be damaged is
    skipped and says why. Raises ForensicsError when nothing under a path is a log, or every file is damaged.
    subject: of which run the traces of other tools are, which know none; logs state their own.
    """
    plan: dict[Path, Found] = {}
    for path in paths:
        for one in find(path):
            known = plan.setdefault(one.path.resolve(), one)
            plan[one.path.resolve()] = known._replace(named=known.named or one.named)
    if subject != UNSAID and not any(one.reason is None and not knows_run(one) for one in plan.values()):
        raise ForensicsError("a run was given, but every log here states its own", BAD_INPUT, "leave out --run")
    summaries, errors = [], []
    try:
        for found in plan.values():
            try:
                summaries.append(_load_file(found, store, progress, subject))
            except _Unusable as fault:
                errors.append(fault.error)
                reason = fault.error.message.removeprefix(f"{found.path}: ")
                summaries.append(FileSummary(str(found.path), found.format, "", skipped=reason, named=found.named))
    finally:
        bind(store)
    if errors and all(one.skipped is not None for one in summaries):
        raise errors[0]
    return summaries


def _load_file(found: Found, store: Store, progress: Progress | None, subject: Subject) -> FileSummary:
    path, named = str(found.path), found.named
    if found.reason is not None:
        return FileSummary(path, "", "", skipped=found.reason, named=named)
    with store.transaction():
        size, sha256, source = _identified(found, store)
        try:
            subject = applied(found, source, subject, store)
        except ForensicsError as error:
            raise _Unusable(error) from None
        if (source["bytes"], source["sha256"]) == (size, sha256):
            return _unchanged(source, path, named=named)
        mark = Mark(source["line"], source["offset"])
        filing = Filing(store, source["source_id"], source["path"], _kept(store, source, mark))
        file_entry = filing.add_verdict if found.format == "verdict" else filing.add
        whole = None
        for entry in _entries(found, size, mark, progress, subject):
            if entry.end is not None:
                mark = entry.end
            elif whole is None:
                whole = _counted(filing.tally)
            file_entry(entry)
        source |= whole or _counted(filing.tally)
        filing.flush()
        filing.tally.check()
        if filing.tally.stored + filing.tally.merged and found.format != "verdict":
            unbind(store)
        _sign(store, source | {"bytes": size, "sha256": sha256} | mark._asdict(), filing.tally)
    return FileSummary(path, found.format, sha256, **vars(filing.tally), named=named)


def _entries(found: Found, size: int, start: Mark, progress: Progress | None, subject: Subject) -> Iterator[Any]:
    """Yield what the file holds. What is wrong with the file is told apart from what is wrong with the store."""
    member: Any = members(ingest)[found.format]
    entries = enumerate(said_of(entry, found, subject) for entry in member.read(found.path, size, start))
    path = str(found.path)
    while True:
        try:
            number, entry = next(entries)
        except StopIteration:
            break
        except ForensicsError as error:
            raise _Unusable(error) from None
        except OSError as fault:
            raise _unreadable(found.path, fault) from None
        if progress is not None and number % PROGRESS_EVERY == 0:
            progress(path, entry.position, size)
        yield entry
    if progress is not None:
        progress(path, size, size)


def _unreadable(path: Path, fault: OSError) -> _Unusable:
    message = f"{path}: cannot be read: {fault.strerror}"
    return _Unusable(ForensicsError(message, BAD_INPUT, "nothing of it was stored"))


def _identified(found: Found, store: Store) -> tuple[int, str, dict[str, Any]]:
    """Return (size, sha256, the source that these bytes are, or that they have grown from; else a new one).

    A log that grew is the same source: its old bytes are a prefix of the new ones.
    """
    earlier = store.ask("sources_of_path", path=str(found.path)).rows()
    sha256, done = hashlib.sha256(), 0
    at: dict[int, str] = {}
    try:
        with found.path.open("rb") as file:
            for stop in [*sorted({size for _, size, _ in earlier}), found.path.stat().st_size]:
                while done < stop and (piece := file.read(min(PIECE, stop - done))):
                    sha256.update(piece)
                    done += len(piece)
                at[done] = sha256.hexdigest()
    except OSError as fault:
        raise _unreadable(found.path, fault) from None
    grown_from = [source_id for source_id, size, digest in earlier if at.get(size) == digest]
    known = store.ask("source", source_id=grown_from[-1] if grown_from else None, sha256=at[done]).to_dicts()
    return done, at[done], known[0] if known else _new_source(store, found)


def _new_source(store: Store, found: Found) -> dict[str, Any]:
    last = store.ask("sources")["source_id"].max()
    counts = dict.fromkeys(("stored", "merged", "rows"), 0) | BEGINNING._asdict()
    number = 1 if last is None else int(str(last)) + 1
    return counts | {
        "source_id": number, "path": str(found.path), "format": found.format, "unknown_rows": "{}",
        "bytes": None, "sha256": None, "subject": json.dumps(UNSAID),
    }  # fmt: skip


def _kept(store: Store, source: dict[str, Any], mark: Mark) -> Tally:
    """Return what became of the rows before the mark; what was set aside after it is judged again."""
    store.run(
        "DELETE FROM quarantine WHERE source_id = $source_id AND line > $line",
        {"source_id": source["source_id"], "line": mark.line},
    )
    aside = len(store.ask("aside_of_source", source_id=source["source_id"]))
    rows = source["rows"]
    return Tally(rows, 0, 0, rows - aside, aside, unknown_fields=Counter(json.loads(source["unknown_rows"])))


def _unchanged(source: dict[str, Any], path: str, *, named: bool) -> FileSummary:
    """Return the summary of bytes that are on file: every row is, or stands in quarantine."""
    read, quarantined = source["read"], source["quarantined"]
    known = FileSummary(path, source["format"], source["sha256"], read, 0, 0, read - quarantined, quarantined)
    return replace(known, unknown_fields=json.loads(source["unknown_fields"]), named=named)


def _counted(tally: Tally) -> dict[str, Any]:
    """Return what is counted up to a mark: it stays when the file grows."""
    return {"rows": tally.read, "unknown_rows": json.dumps(tally.unknown_fields)}


def _sign(store: Store, source: dict[str, Any], tally: Tally) -> None:
    """Write what this source is and has given over its life: a second look at the same bytes changes nothing."""
    stored, merged = source["stored"] + tally.stored, source["merged"] + tally.merged
    row = source | {
        "read": tally.read,
        "stored": stored,
        "merged": merged,
        "duplicates": tally.read - stored - merged - tally.quarantined,
        "quarantined": tally.quarantined,
        "unknown_fields": json.dumps(tally.unknown_fields, sort_keys=True),
    }
    store.remove("source", "source_id", [source["source_id"]])
    store.insert("source", [row])
