"""Parse, call one function, choose the exit code. The only user of typer. Heavy imports happen inside commands.

Exit codes as `diff`: 0 same or done, 1 a divergence, 2 usage, 3 bad input, 4 inconclusive; 130 interrupted.
Results go to stdout, talk to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forensics import reports
from forensics.console import progress, say, table
from forensics.errors import ForensicsError
from forensics.registry import members, names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.store import Store
    from forensics.timeline import Thresholds

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Postmortems of LLM serving: same prompt, same checkpoint, temperature 0, different answer. Why?",
)  # fmt: skip

Format = StrEnum("Format", names(reports))  # type: ignore[misc] # one choice for every file in the room


class ListFormat(StrEnum):
    """How a list is shown."""

    table = "table"
    json = "json"


Db = Annotated[
    Path, typer.Option("--db", envvar="FORENSICS_DB", readable=False, help="The store: a DuckDB index of the log.")
]
ReqId = Annotated[str, typer.Argument(metavar="REQ", help="Request id: the engine's or the client's.")]
Against = Annotated[str | None, typer.Option("--against", metavar="REQ", help="Compare with this request.")]
FreeMb = Annotated[float, typer.Option("--free-mb", help="Below this much free memory the regime is memory_pressured.")]
QueueMs = Annotated[float, typer.Option("--queue-p95-ms", help="Above this queue p95 the regime is queue_degraded.")]
AsList = Annotated[ListFormat, typer.Option("--format", help="A table to read, or JSON for programs.")]
STORE = Path("forensics.duckdb")
TERMINAL = Format("terminal")
INTERNAL = 70
"""EX_SOFTWARE of sysexits.h: a bug of ours."""


@app.command(context_settings={"ignore_unknown_options": True})
def record(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="The server or program to run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the recording.")] = Path("recording"),
    with_ids: Annotated[
        bool, typer.Option("--with-ids", help="Record token ids: needed for replay, sensitive.")
    ] = False,
    replica: Annotated[str | None, typer.Option("--replica", help="Name of this replica.")] = None,
) -> None:
    """Run a server or program with the recorder on; returns its exit code."""
    from forensics.recording import record as run

    done = run(command, out, with_ids=with_ids, replica=replica)
    if not done.reported:
        say(f"no recorder reported in: nothing usable is in {out}")
        say("vLLM: install this package into the server's environment (pip install --no-deps); transformers: the")
        say("command must run Python with this package importable, and call generate() or continuous batching")
        raise typer.Exit(done.exit_code or 4)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(done.records.items()))
    say(
        f"recorded {done.requests} requests ({counts} records) in {len(done.files)} file(s) in {out}; "
        f"{done.dropped} dropped, {done.faults} recorder faults"
    )
    say(f"next: forensics ingest {out}")
    raise typer.Exit(done.exit_code)


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


@app.command()
def quarantine(db: Db = STORE, format: AsList = ListFormat.table) -> None:
    """Show what was set aside, and why."""
    with _store(db) as store:
        rows = store.ask("quarantined").to_dicts()
    head = ["source_path", "line", "offset", "reason", "length", "sha256"]
    table(head, [[row[name] for name in head] for row in rows], as_json=format is ListFormat.json)


@app.command()
def incidents(
    db: Db = STORE, format: AsList = ListFormat.table, free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
) -> None:  # fmt: skip
    """List requests of which the same x, or the same question, got another answer. Exit code 1 if there are any."""
    from forensics.incidents import incidents as find

    with _store(db) as store:
        found = find(store, _limits(free_mb, queue_p95_ms))
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

    with _store(db) as store:
        fields = coverage(gather(store, find_request(store, req_id), Thresholds()))
    rows = [[f"{f.kind}.{f.name}", f.status, f"{f.share:.0%}", "" if f.share == 1 else f.stops] for f in fields]
    table(["field", "status", "rows", "without it we cannot tell"], rows, as_json=format is ListFormat.json)
    first = record_first(fields)
    if first:
        say("record these first: " + ", ".join(f"{field.kind}.{field.name}" for field in first))


@app.command()
def explain(
    req_id: ReqId, against: Against = None, db: Db = STORE,
    format: Annotated[Format, typer.Option("--format", help="How to show it.")] = TERMINAL,
    free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
) -> None:  # fmt: skip
    """Say what happened to one request: flip, timeline, causal chain, how each link is known, what is missing."""
    from forensics.explain import explain as run

    with _store(db) as store:
        explanation = run(store, req_id, against, _limits(free_mb, queue_p95_ms))
    members(reports)[format.value].render(explanation, sys.stdout)
    raise typer.Exit(explanation.exit_code)


@app.command()
def case(
    req_id: ReqId,
    out: Annotated[Path, typer.Option("--out", "-o", help="The case file to write.")] = Path("case.json"),
    against: Against = None,
    db: Db = STORE,
) -> None:
    """Write the case file: all that a replay needs, for a machine with nothing but torch and the engine."""
    from forensics.casefile import build_case
    from forensics.incident import assemble
    from forensics.replaying import write_case

    _refuse_store(out)
    with _store(db) as store:
        built = build_case(store, assemble(store, req_id, against, _limits()))
    write_case(built, out)
    say(f"wrote {out}; replay it where torch is: python -m replay {out} -o verdict.json")


@app.command()
def replay(
    req_id: ReqId,
    pin_algo: Annotated[
        list[str] | None,
        typer.Option(
            "--pin-algo", metavar="FACTOR=VALUE", help="Force a factor; or 'incident' or 'reference'. Repeatable."
        ),
    ] = None,
    against: Against = None,
    model: Annotated[Path | None, typer.Option("--model", help="Folder of the model, if not where it was.")] = None,
    python: Annotated[str, typer.Option("--python", help="Interpreter with torch and transformers.")] = sys.executable,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that one child process may take.")] = 600.0,
    db: Db = STORE,
) -> None:
    """Execute the effective request again under forced factors of the plan, and file the verdict."""
    from forensics.casefile import build_case
    from forensics.filed import parse
    from forensics.incident import assemble
    from forensics.load import load
    from forensics.replaying import replay as run
    from forensics.text import command, printable

    with _store(db) as store:
        built = build_case(store, assemble(store, req_id, against, _limits()))
    arguments = [word for pin in pin_algo or [] for word in ("--pin-algo", pin)]
    arguments += ["--timeout", str(timeout), *(["--model", str(model)] if model else [])]
    done = run(built, db.parent / f"{db.stem}-verdicts", python, arguments)
    verdict = parse(done.document, str(done.path))
    rows = [[one.name, one.tokens_equal, one.bits_equal, one.refused] for one in verdict.trials]
    if rows:
        table(["trial", "tokens equal to", "bits equal to", "refused because"], rows)
    print(printable(f"{verdict.outcome}: {verdict.claim}", 2000))
    for limit in verdict.limits:
        say(f"limit: {printable(limit)}")
    try:
        with _store(db, read_only=False) as store:
            load([done.path], store, None)
    except ForensicsError as error:
        hint = f"file it later: forensics ingest {done.path} --db {db}"
        raise ForensicsError(f"the verdict is {done.path}, but the store did not take it: {error}", 3, hint) from None
    again = [f"--against={against}"] if against else []
    say(f"filed {done.path}; next: {command('explain', *again, request=req_id)}")
    raise typer.Exit(done.exit_code)


@app.command()
def export(
    req_id: ReqId,
    out: Annotated[Path, typer.Option("--out", "-o", help="The review; pictures go beside it.")] = Path("review.md"),
    against: Against = None, db: Db = STORE, free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
) -> None:  # fmt: skip
    """Write the incident review: markdown, with the timeline as SVG and PNG beside it."""
    from forensics.explain import explain as run
    from forensics.picture import draw
    from forensics.reports import markdown

    _refuse_store(out)
    with _store(db) as store:
        explanation = run(store, req_id, against, _limits(free_mb, queue_p95_ms))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures = draw(explanation, out.with_name(f"{out.stem}-timeline"))
        with out.open("w", encoding="utf-8") as review:
            markdown.render(explanation, review, picture=pictures[0].stem if pictures else None)
    except OSError as fault:
        raise ForensicsError(f"{out}: cannot write: {fault.strerror}", 3, "choose another -o") from None
    say(f"wrote {', '.join(str(path) for path in (out, *pictures))}")


def _refuse_store(out: Path) -> None:
    """Refuse to write a document over a folder, a store or a recording."""
    if out.is_dir():
        raise ForensicsError(f"{out}: a folder", 2, "give -o a file name")
    if out.is_file():
        with contextlib.suppress(OSError), out.open("rb") as file:
            head = file.read(12)
            if head[8:12] == b"DUCK" or head[:2] == b"\x1f\x8b" or out.suffix == ".jsonl":
                raise ForensicsError(f"{out}: a store or a recording; it is not written over", 2, "choose another -o")


def _remove_if_empty(db: Path) -> None:
    """Remove a store that this call made and that nothing was filed in."""
    from forensics.store import Store

    with contextlib.suppress(ForensicsError, OSError):
        with Store.open(db, read_only=True) as store:
            empty = len(store.ask("sources")) == 0
        if empty:
            db.unlink()


@contextlib.contextmanager
def _store(db: Path, *, read_only: bool = True) -> Iterator[Store]:
    from forensics.store import Store

    with Store.open(db, read_only=read_only) as store:
        yield store


def _limits(free_mb: float = 1024.0, queue_p95_ms: float = 50.0) -> Thresholds:
    from forensics.timeline import Thresholds

    return Thresholds(free_mb=free_mb, queue_p95_ms=queue_p95_ms)


def main() -> None:
    """Run the command line; errors for the user become a message and an exit code, never a traceback."""
    try:
        app()
    except ForensicsError as error:
        say(f"forensics: {error}")
        if error.hint:
            say(f"  {error.hint}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted; nothing half-done is kept")
        sys.exit(130)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the reader went away: no message about it at exit
        sys.exit(0)
    except Exception as fault:  # our bug: still a message, and the way to the traceback
        if os.environ.get("FORENSICS_DEBUG"):
            raise
        say(f"forensics: internal error: {type(fault).__name__}: {fault}")
        say("  this is a bug; run it again with FORENSICS_DEBUG=1 for the traceback, and please report it")
        sys.exit(INTERNAL)


if __name__ == "__main__":
    main()
