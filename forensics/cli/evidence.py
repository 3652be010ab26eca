"""Commands that fill the store and ask what is in it."""

from __future__ import annotations

import contextlib
from pathlib import Path  # noqa: TC003 - typer reads the annotations at run time
from typing import Annotated

import typer

from forensics.cli.app import STORE, AsList, Db, FreeMb, ListFormat, QueueMs, ReqId, app, limits, opened
from forensics.console import progress, say, table
from forensics.errors import ForensicsError


@app.command()
def ingest(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", readable=False, help="Logs, verdicts, or folders of them.")
    ],
    db: Db = STORE,
    format: AsList = ListFormat.table,
) -> None:
    """Put logs (JSONL plain, gz, zst; Parquet) and verdicts into the store. Doing it twice changes nothing."""
    from forensics.load import load
    from forensics.store import Store
    from forensics.text import printable

    fresh = not db.exists()
    try:
        with Store.open(db, create=True) as store, progress() as advance:
            summaries = load(paths, store, advance)
    except BaseException as fault:
        if fresh:
            _remove_if_empty(db)
        if isinstance(fault, KeyboardInterrupt):
            say("interrupted; nothing of the file that was being read is kept, whole files before it are")
            raise typer.Exit(130) from None
        raise
    head = ["path", "format", "read", "stored", "merged", "duplicates", "quarantined"]
    rows = [[getattr(one, name) for name in head] for one in summaries if one.skipped is None]
    table(head, rows, as_json=format is ListFormat.json)
    for one in summaries:
        if one.skipped is not None:
            say(f"skipped {printable(one.path)}: {one.skipped}")
    unknown = sorted({name for one in summaries for name in one.unknown_fields})
    if unknown:
        say(f"{len(unknown)} fields are not in the contract; kept as they are: {', '.join(unknown[:12])}")
    quarantined = sum(one.quarantined for one in summaries)
    if quarantined:
        say(f"{quarantined} rows break the contract and were set aside: forensics quarantine --db {db}")
    if quarantined and not any(one.stored + one.merged + one.duplicates for one in summaries):
        say("no row of this could be used")
        raise typer.Exit(3)


def _remove_if_empty(db: Path) -> None:
    """Remove a store that this call made and that nothing was filed in."""
    from forensics.store import Store

    with contextlib.suppress(ForensicsError, OSError):
        with Store.open(db, read_only=True) as store:
            empty = len(store.ask("sources")) == 0
        if empty:
            db.unlink()


@app.command()
def quarantine(db: Db = STORE, format: AsList = ListFormat.table) -> None:
    """Show what was set aside, and why."""
    with opened(db) as store:
        rows = store.ask("quarantined").to_dicts()
    head = ["source_path", "line", "offset", "reason", "length", "sha256"]
    table(head, [[row[name] for name in head] for row in rows], as_json=format is ListFormat.json)


@app.command()
def incidents(
    db: Db = STORE, format: AsList = ListFormat.table, free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
) -> None:  # fmt: skip
    """List requests of which the same x, or the same question, got another answer. Exit code 1 if there are any."""
    from forensics.incidents import incidents as find

    with opened(db) as store:
        found = find(store, limits(free_mb, queue_p95_ms))
    rows = [one.row() for one in found]
    table(
        list(rows[0]) if rows else ["request"], [list(row.values()) for row in rows], as_json=format is ListFormat.json
    )
    say(f"{len(found)} divergent request(s)" + ("; next: forensics explain REQUEST" if found else ""))
    raise typer.Exit(1 if found else 0)


@app.command()
def contract(req_id: ReqId, db: Db = STORE, format: AsList = ListFormat.table) -> None:
    """Show what is on record of a request, what is missing, and what each missing field stops us from claiming."""
    from forensics.coverage import coverage, record_first
    from forensics.evidence import gather
    from forensics.incident import find_request
    from forensics.timeline import Thresholds

    with opened(db) as store:
        fields = coverage(gather(store, find_request(store, req_id), Thresholds()))
    rows = [[f.full_name, f.status, f"{f.share:.0%}", "" if f.share == 1 else f.stops] for f in fields]
    table(["field", "status", "rows", "without it we cannot tell"], rows, as_json=format is ListFormat.json)
    first = record_first(fields)
    if first:
        say("record these first: " + ", ".join(field.full_name for field in first))
