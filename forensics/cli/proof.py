"""Commands that execute a request again: the case file, and the replay."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.app import (
    STORE,
    Against,
    AsList,
    Db,
    ListFormat,
    ReqId,
    above_zero,
    app,
    examples,
    limits,
    opened,
    refuse_store,
)
from forensics.console import say, table
from forensics.errors import ForensicsError


@app.command(
    epilog=examples(
        "forensics case batch-6 -o case.json",
        "python -m replay case.json -o verdict.json      # where torch is",
    )
)
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

    refuse_store(out)
    with opened(db) as store:
        built = build_case(store, assemble(store, req_id, against, limits()))
    write_case(built, out)
    say(f"wrote {out}; replay it where torch is: python -m replay {out} -o verdict.json")


@app.command(
    epilog=examples(
        "forensics replay batch-6",
        "forensics replay batch-6 --jobs 2 --localise --arbiter",
        "forensics replay batch-6 --pin-algo batch.left_pad=0 --timeout 300",
        "forensics replay REQ --model MODEL --python /srv/venv/bin/python",
    )
)
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
    python: Annotated[str, typer.Option("--python", help="Interpreter with torch and the engine.")] = sys.executable,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=above_zero, help="Seconds that one trial may take.")
    ] = 600.0,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Times that the incident runs again.")] = 2,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trials at once, each with a model in memory.")] = 1,
    localise: Annotated[bool, typer.Option("--localise", help="Also which operator, by up to 24 more trials.")] = False,
    arbiter: Annotated[bool, typer.Option("--arbiter", help="Also which token float64 says, and how far.")] = False,
    db: Db = STORE,
) -> None:
    """Execute the effective request again under forced factors of the plan, and file the verdict."""
    from forensics.casefile import build_case
    from forensics.filed import parse
    from forensics.incident import assemble
    from forensics.load import load
    from forensics.replaying import replay as run
    from forensics.text import command, printable

    with opened(db) as store:
        built = build_case(store, assemble(store, req_id, against, limits()))
    arguments = [word for pin in pin_algo or [] for word in ("--pin-algo", pin)]
    arguments += ["--timeout", str(timeout), "--repeats", str(repeats), "--jobs", str(jobs)]
    arguments += ["--model", str(model)] if model else []
    arguments += ["--localise"] * localise + ["--arbiter"] * arbiter
    done = run(built, db.parent / f"{db.stem}-verdicts", python, arguments)
    verdict = parse(done.document, str(done.path))
    rows = [[one.name, one.tokens_equal, one.bits_equal, one.no_result] for one in verdict.trials]
    if rows:
        table(["trial", "tokens equal to", "bits equal to", "no result because"], rows)
    print(printable(f"{verdict.outcome}: {verdict.claim}", 2000))
    for finding in verdict.findings:
        print(printable(finding, 2000))
    for limit in verdict.limits:
        say(f"limit: {printable(limit)}")
    try:
        with opened(db, read_only=False) as store:
            load([done.path], store, None)
    except ForensicsError as error:
        hint = f"file it later: forensics ingest {done.path} --db {db}"
        raise ForensicsError(f"the verdict is {done.path}, but the store did not take it: {error}", 3, hint) from None
    again = [f"--against={against}"] if against else []
    say(f"filed {done.path}; next: {command('explain', *again, request=req_id)}")
    raise typer.Exit(done.exit_code)


@app.command(
    epilog=examples(
        "forensics whatif REQ --without OTHER,ANOTHER --python /srv/venv/bin/python",
        "forensics whatif REQ --later OTHER=20 --shorter ANOTHER=8 --model MODEL",
    )
)
def whatif(
    req_id: ReqId,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="OTHER[,OTHER…]", help="Leave these out. Repeatable."),
    ] = None,
    later: Annotated[
        list[str] | None,
        typer.Option("--later", metavar="OTHER=STEPS", help="Delay one by so many engine steps."),
    ] = None,
    shorter: Annotated[
        list[str] | None, typer.Option("--shorter", metavar="OTHER=TOKENS", help="Let one answer at most so much.")
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Folder of the model, if not where it was.")] = None,
    python: Annotated[str, typer.Option("--python", help="Interpreter that has the engine.")] = sys.executable,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=above_zero, help="Seconds that one trial may take.")
    ] = 600.0,
    db: Db = STORE,
) -> None:
    """Say whether a request would have been the same without others: exit 0 the same, 1 another, 4 not decided."""
    from forensics.replaying import replay as run
    from forensics.text import printable
    from forensics.whatif import Change, answer, numbers, target_of, what_if

    left_out = tuple(name for given in without or () for name in given.split(",") if name)
    change = Change(left_out, numbers(later, "--later", 0), numbers(shorter, "--shorter", 1))
    with opened(db) as store:
        built = what_if(store, target_of(store, req_id), change)
    arguments = ["--arms-only", "--timeout", str(timeout), *(["--model", str(model)] if model else [])]
    done = run(built, db.parent / f"{db.stem}-whatif", python, arguments)
    print(printable(answer(done.document), 2000))
    for limit in done.document.get("limits", ()):
        say(f"limit: {printable(limit)}")
    say(f"the trials are in {done.path}; nothing was filed: nobody recorded what was asked here")
    raise typer.Exit(done.exit_code)


@app.command(epilog=examples("forensics doctor", "forensics doctor --model MODEL --format json"))
def doctor(
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of a model to try it on; default: two random layers.")
    ] = None,
    python: Annotated[str, typer.Option("--python", help="Interpreter with torch and transformers.")] = sys.executable,
    show: AsList = ListFormat.table,
) -> None:
    """Pin every factor of the plan on this machine and read it back: what a replay here can honour."""
    from forensics.doctor import COLUMNS, examine

    found = examine(python, str(model) if model else None)
    table(COLUMNS, [[one[name] for name in COLUMNS] for one in found], as_json=show is ListFormat.json)
