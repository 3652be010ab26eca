"""Commands that find the request to ask about: by what a person knows of it, or because its answer differs."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations at run time
from typing import Annotated

import typer

from forensics.cli.app import (
    STORE,
    AsList,
    Db,
    Evaporated,
    FreeMb,
    ListFormat,
    Model,
    QueueMs,
    Replica,
    Since,
    Until,
    app,
    examples,
    limits,
    opened,
)
from forensics.console import say, table


@app.command(
    epilog=examples(
        "forensics find --since 10:41 --finish length", "forensics find --prompt 'Who wrote it?' --since 2h"
    )
)
def find(
    part_of_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Part of either id.")] = None,
    since: Since = None, until: Until = None, replica: Replica = None, model: Model = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The whole prompt as sent; hashed here.")] = None,
    prompt_file: Annotated[Path | None, typer.Option("--prompt-file", help="A file that holds it.")] = None,
    prompt_sha256: Annotated[
        str | None, typer.Option("--prompt-sha256", metavar="HEX", help="Its hash, or 8 digits or more of it.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Part of the answer's text, where recorded.")] = None,
    output_sha256: Annotated[
        str | None, typer.Option("--output-sha256", metavar="HEX", help="The same of the answer's token ids.")
    ] = None,
    finish: Annotated[str | None, typer.Option("--finish", help="Finish reason: stop, length, abort, …")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Show at most so many, the oldest.")] = 50,
    db: Db = STORE, format: AsList = ListFormat.table,
) -> None:  # fmt: skip
    """Find requests by time, replica, model, prompt or answer. Exit code 0 even if there are none: it says so."""
    from forensics.searching import Marks, part_of_hash, prompt_hashes, scope
    from forensics.searching import find as run
    from forensics.text import moment

    marks = Marks(
        part_of_id, prompt_hashes(prompt, prompt_file), part_of_hash(prompt_sha256, "--prompt-sha256"), output,
        part_of_hash(output_sha256, "--output-sha256"), finish,
    )  # fmt: skip
    with opened(db) as store:
        found = run(store, scope(store, since, until, replica, model), marks, limit)
    head = ["request", "client's id", "run", "replica", "model", "arrived", "prompt", "output", "finish", "at"]
    rows = [
        [
            row["req_id"], row["external_req_id"], row["run_id"], row["replica_id"], row["model"],
            moment(row["arrival_ts"]), row["effective_tokens"], row["output_tokens"], row["finish_reason"],
            f"{row['source_path']}:{row['line']}",
        ]
        for row in found.to_dicts()
    ]  # fmt: skip
    table(head, rows, as_json=format is ListFormat.json)
    total = found["found"][0] if len(found) else 0
    left = f"; {total - len(rows)} left out, --limit shows more" if total > len(rows) else ""
    say(
        f"{total} request(s)"
        + left
        + ("; next: forensics explain REQUEST" if rows else ": none fits all that was given")
    )


@app.command(epilog=examples("forensics incidents", "forensics incidents --since 2h --format json"))
def incidents(
    since: Since = None, until: Until = None, replica: Replica = None, model: Model = None,
    db: Db = STORE, format: AsList = ListFormat.table, free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
    evaporation_ratio: Evaporated = 0.05,
) -> None:  # fmt: skip
    """List requests of which the same x, or the same question, got another answer. Exit code 1 if there are any."""
    from forensics.incidents import incidents as run
    from forensics.searching import scope

    with opened(db) as store:
        found = run(store, limits(free_mb, queue_p95_ms, evaporation_ratio), scope(store, since, until, replica, model))
    rows = [one.row() for one in found]
    as_json = format is ListFormat.json
    if rows or as_json:
        table(list(rows[0]) if rows else [], [list(row.values()) for row in rows], as_json=as_json)
    say(f"{len(found)} divergent request(s)" + ("; next: forensics explain REQUEST" if found else ""))
    raise typer.Exit(1 if found else 0)
