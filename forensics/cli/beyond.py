"""Commands that look beyond one request: a run over time, replicas against each other, plans against bits, risk."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from forensics.bars import glyphs
from forensics.cli.app import (
    STORE,
    AsList,
    Db,
    Evaporated,
    FreeMb,
    ListFormat,
    QueueMs,
    Replica,
    app,
    examples,
    known_runs,
    limits,
    opened,
)
from forensics.errors import INCONCLUSIVE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from forensics.bars import Glyphs

PIPED, NARROWEST, WIDEST = 100, 40, 120
"""Columns: where the output is no terminal; the least and the most that a terminal's text is set in."""
JSON_WINDOWS = 40
"""Windows of a run where no screen limits them."""


def screen() -> tuple[int, Glyphs]:
    """Return how wide the output is and which characters it can show."""
    columns = shutil.get_terminal_size((PIPED, 24)).columns if sys.stdout.isatty() else PIPED
    shown = glyphs(getattr(sys.stdout, "encoding", None), os.environ.get("TERM", ""))
    return min(max(columns, NARROWEST), WIDEST), shown


def show(lines: Iterable[str]) -> None:
    """Print the lines of a screen."""
    for line in lines:
        print(line)


def document(told: dict[str, Any]) -> None:
    """Print a document for other programs."""
    print(json.dumps(told, ensure_ascii=False, indent=2, default=str))


@app.command(
    epilog=examples(
        "forensics timeline transformers-1a207fed05d-1480", "forensics timeline transformers-1a --format json"
    )
)
def timeline(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.", autocompletion=known_runs)
    ],
    replica: Replica = None,
    windows: Annotated[
        int | None, typer.Option("--windows", min=1, max=1000, help="In so many windows; default: as many as fit.")
    ] = None,
    db: Db = STORE, format: AsList = ListFormat.table, free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
    evaporation_ratio: Evaporated = 0.05,
) -> None:  # fmt: skip
    """Show one run over time: load, regimes and what pushed them, tactics, change points, loops, losses."""
    from forensics.runs.run import find_run, read_run
    from forensics.runs.screen import NAMES, timeline_screen
    from forensics.runs.timeline import timeline as tell

    width, shown = screen()
    as_json = format is ListFormat.json
    count = windows or (JSON_WINDOWS if as_json else width - NAMES)
    with opened(db) as store:
        named = find_run(store, run, replica)
        found = read_run(
            store, named["run_id"], named["replica_id"], limits(free_mb, queue_p95_ms, evaporation_ratio)
        )
        told = tell(store, found, count if as_json else min(count, width - NAMES))
    if as_json:
        document(told.document())
    else:
        show(timeline_screen(told, width, shown))
