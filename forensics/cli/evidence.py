"""Commands that fill the store and ask what is in it."""

from __future__ import annotations

import contextlib
from pathlib import Path  # noqa: TC003 - typer reads the annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from forensics.cli.app import STORE, AsList, Db, ListFormat, ReqId, app, examples, opened
from forensics.console import progress, say, table
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.load import FileSummary
    from forensics.store import Store
    from forensics.subject import Subject


@app.command(
    epilog=examples(
        "forensics ingest fixtures/incidents/transformers-tiny-batch/log",
        "forensics ingest --db night.duckdb LOG.jsonl.zst OTHER-HOST/",
        "forensics ingest --check fixtures/incidents/transformers-tiny-batch/log",
        "forensics ingest --run lab-1 fixtures/traces/gloo-slow-rank",
    )
)
def ingest(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", readable=False, help="Logs, verdicts, traces, or folders of them.")
    ],
    db: Db = STORE,
    run: Annotated[str | None, typer.Option("--run", help="The run of the traces: other tools know none.")] = None,
    replica: Annotated[str | None, typer.Option("--replica", help="The replica of that run, where it has one.")] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=0, help="The rank of traces that do not state it themselves.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Store nothing; grade the logs, for recorder authors.")
    ] = False,
    format: AsList = ListFormat.table,
) -> None:
    """Put logs (JSONL plain, gz, zst; Parquet), verdicts and traces of other tools into the store.

    Doing it twice changes nothing.
    Traces: Nsight Systems (sqlite), torch.profiler, PyTorch's flight recorder, and what cuBLASLt, oneDNN or MKL print.
    """
    from forensics.load import load
    from forensics.store import Store
    from forensics.subject import Subject

    if run is None and (replica, rank) != (None, None):
        raise ForensicsError("--replica and --rank say more of --run, which is not given", 2)
    subject = Subject(run, replica, rank)
    if check:
        _check(paths, subject, as_json=format is ListFormat.json)
        return
    fresh = not db.exists()
    try:
        with Store.open(db, create=True) as store, progress() as advance:
            summaries = load(paths, store, advance, subject)
            lacking = _lacking(store)
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
    _talk(summaries)
    quarantined = sum(one.quarantined for one in summaries)
    if quarantined:
        say(f"{quarantined} rows break the contract and were set aside: forensics quarantine --db {db}")
    for line in lacking:
        say(f"{line}: forensics sources --db {db}")
    if quarantined and not any(one.stored + one.merged + one.duplicates for one in summaries):
        say("no row of this could be used")
        raise typer.Exit(3)
    if any(one.skipped is not None and one.named for one in summaries):
        raise typer.Exit(3)


def _talk(summaries: Sequence[FileSummary]) -> None:
    from forensics.text import printable

    for one in summaries:
        if one.skipped is not None:
            say(f"skipped {printable(one.path)}: {one.skipped}")
    unknown = sorted({name for one in summaries for name in one.unknown_fields})
    if unknown:
        shown = ", ".join(printable(name, 80) for name in unknown[:12])
        say(f"{len(unknown)} fields are not in the contract; kept as they are: {shown}")


def _lacking(store: Store) -> list[str]:
    """Return what a person should hear about the evidence as a whole: losses, and parts that contradict."""
    from forensics.completeness import in_a_line, runs_in_files

    said = in_a_line(runs_in_files(store))
    apart = store.ask("contradicted").select("run_id", "replica_id", "req_id").n_unique()
    return [
        *([f"the evidence is not whole: {said}"] if said else []),
        *([f"{apart} requests are told differently by a gateway and the engine"] if apart else []),
    ]


def _check(paths: list[Path], subject: Subject, *, as_json: bool) -> None:
    import json

    from forensics.checking import report
    from forensics.load import load
    from forensics.store import Store

    with Store.in_memory() as store, progress() as advance:
        found = report(store, load(paths, store, advance, subject))
    if as_json:
        print(json.dumps(vars(found), ensure_ascii=False, indent=2))
    else:
        for rows in (found.files, found.kinds, found.rejected, found.grades, found.absent):
            if rows:
                table(list(rows[0]), [list(row.values()) for row in rows])
                print()
    for warning in found.warnings:
        say(f"warning: {warning}")
    verdict = "this can be used" if found.usable else "rows break the contract, or none could be used"
    say(f"nothing was stored; {verdict}")
    raise typer.Exit(0 if found.usable else 3)


def _remove_if_empty(db: Path) -> None:
    """Remove a store that this call made and that nothing was filed in."""
    from forensics.store import Store

    with contextlib.suppress(ForensicsError, OSError):
        with Store.open(db, read_only=True) as store:
            empty = len(store.ask("sources")) == 0
        if empty:
            db.unlink()


@app.command(epilog=examples("forensics sources", "forensics sources --format json"))
def sources(db: Db = STORE, format: AsList = ListFormat.table) -> None:
    """Show every run in every file: from when to when, and what its recorder lost or was told to leave out."""
    from forensics.completeness import losses, overlapping, runs_in_files

    with opened(db) as store:
        runs, lost = runs_in_files(store), losses(store)
        apart = store.ask("contradicted").to_dicts()
    rows = [one.row() for one in runs]
    head = list(rows[0]) if rows else ["file"]
    table([name.replace("_", " ") for name in head], [list(row.values()) for row in rows],
          as_json=format is ListFormat.json)  # fmt: skip
    for loss in lost[:20]:
        say(f"run {loss.run_id}: {loss.told()}")
    if len(lost) > 20:
        say(f"… and {len(lost) - 20} more losses")
    for one, other in overlapping(runs):
        say(f"replica {one.replica}: run {other.run} began before run {one.run} had ended: two engines under one id?")
    for row in apart[:20]:
        engine, part = f"{row['source_path']}:{row['line']}", f"{row['part_path']}:{row['part_line']}"
        say(f"request {row['req_id']}: {part} contradicts {engine} in {row['fields']}; the engine's own value stands")


@app.command(epilog=examples("forensics quarantine", "forensics quarantine --format json"))
def quarantine(db: Db = STORE, format: AsList = ListFormat.table) -> None:
    """Show what was set aside, and why."""
    with opened(db) as store:
        rows = store.ask("quarantined").to_dicts()
    head = ["source_path", "line", "offset", "reason", "length", "sha256"]
    table(head, [[row[name] for name in head] for row in rows], as_json=format is ListFormat.json)


@app.command(epilog=examples("forensics contract batch-6", "forensics contract batch-6 --format json"))
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
