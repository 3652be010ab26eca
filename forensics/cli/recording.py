"""Commands that put an engine on record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.app import app
from forensics.console import say


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
