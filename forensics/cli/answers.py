"""Commands that answer: what happened to one request, on a screen or as a review."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from forensics import reports
from forensics.cli.app import (
    STORE,
    Against,
    Db,
    Evaporated,
    FreeMb,
    QueueMs,
    ReqId,
    app,
    examples,
    limits,
    opened,
    refuse_store,
)
from forensics.console import say
from forensics.errors import ForensicsError
from forensics.registry import members, names

Format = StrEnum("Format", names(reports))  # type: ignore[misc] # one choice for every file in the room
TERMINAL = Format("terminal")


@app.command(
    epilog=examples(
        "forensics explain batch-6",
        "forensics explain batch-6 --against again-6 --format markdown",
    )
)
def explain(
    req_id: ReqId, against: Against = None, db: Db = STORE,
    format: Annotated[Format, typer.Option("--format", help="How to show it.")] = TERMINAL,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Terminal: every reason and every gap.")] = False,
    free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
    evaporation_ratio: Evaporated = 0.05,
) -> None:  # fmt: skip
    """Say what happened to one request: flip, timeline, causal chain, how each link is known, what is missing."""
    from forensics.explain import explain as run

    with opened(db) as store:
        explanation = run(store, req_id, against, limits(free_mb, queue_p95_ms, evaporation_ratio))
    report = members(reports)[format.value]
    if format is TERMINAL:
        report.render(explanation, sys.stdout, verbose=verbose)
    else:
        report.render(explanation, sys.stdout)  # these say all there is
    raise typer.Exit(explanation.exit_code)


@app.command(epilog=examples("forensics export batch-6 -o review/batch-6.md"))
def export(
    req_id: ReqId,
    out: Annotated[Path, typer.Option("--out", "-o", help="The review; pictures go beside it.")] = Path("review.md"),
    against: Against = None, db: Db = STORE, free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
    evaporation_ratio: Evaporated = 0.05,
) -> None:  # fmt: skip
    """Write the incident review: markdown, with the timeline as SVG and PNG beside it."""
    from forensics.explain import explain_with_spread
    from forensics.picture import draw
    from forensics.reports import markdown

    refuse_store(out)
    with opened(db) as store:
        explanation = explain_with_spread(store, req_id, against, limits(free_mb, queue_p95_ms, evaporation_ratio))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures = draw(explanation, out.with_name(f"{out.stem}-timeline"))
        with out.open("w", encoding="utf-8") as review:
            markdown.render(explanation, review, picture=pictures[0].stem if pictures else None)
    except OSError as fault:
        raise ForensicsError(f"{out}: cannot write: {fault.strerror}", 3, "choose another -o") from None
    say(f"wrote {', '.join(str(path) for path in (out, *pictures))}")
