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
    Model,
    QueueMs,
    Replica,
    Since,
    Until,
    above_zero,
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
        found = read_run(store, named["run_id"], named["replica_id"], limits(free_mb, queue_p95_ms, evaporation_ratio))
        told = tell(store, found, count if as_json else min(count, width - NAMES))
    if as_json:
        document(told.document())
    else:
        show(timeline_screen(told, width, shown))


@app.command(epilog=examples("forensics fleet", "forensics fleet --since 2h --window 600 --format json"))
def fleet(
    since: Since = None, until: Until = None, replica: Replica = None, model: Model = None,
    window: Annotated[
        float | None, typer.Option("--window", parser=above_zero, metavar="SECONDS", help="Length of a window.")
    ] = None,
    db: Db = STORE, format: AsList = ListFormat.table, free_mb: FreeMb = 1024.0, queue_p95_ms: QueueMs = 50.0,
    evaporation_ratio: Evaporated = 0.05,
) -> None:  # fmt: skip
    """Say which replica disagrees with its twins, when, against whom, and what differed. Exit code 1 if one does."""
    from forensics.runs.fleet import fleet as run
    from forensics.runs.fleet_screen import fleet_screen
    from forensics.searching import scope

    with opened(db) as store:
        asked = scope(store, since, until, replica, model)
        told = run(store, asked, limits(free_mb, queue_p95_ms, evaporation_ratio), window)
    if format is ListFormat.json:
        document(told.document())
    else:
        show(fleet_screen(told, screen()[0]))
    raise typer.Exit(told.exit_code)


@app.command(epilog=examples("forensics plans", "forensics plans --replica vm-transformers --format json"))
def plans(
    since: Since = None, until: Until = None, replica: Replica = None, model: Model = None,
    db: Db = STORE, format: AsList = ListFormat.table,
) -> None:  # fmt: skip
    """Count over all pairs of runs of a request: same launch shapes, same bits? Exit code 1 with a counter-example."""
    from forensics.runs.fleet_screen import plans_screen
    from forensics.runs.plans import plans as run
    from forensics.searching import scope

    with opened(db) as store:
        told = run(store, scope(store, since, until, replica, model))
    if format is ListFormat.json:
        document(told.document())
    else:
        show(plans_screen(told, screen()[0]))
    raise typer.Exit(told.exit_code)


@app.command(epilog=examples("forensics risk", "forensics risk --ulps 2 --replica vm-transformers --format json"))
def risk(
    since: Since = None, until: Until = None, replica: Replica = None, model: Model = None,
    ulps: Annotated[float, typer.Option("--ulps", min=0, max=1e6, help="A step is at risk up to this lead.")] = 1.0,
    db: Db = STORE, format: AsList = ListFormat.table,
) -> None:  # fmt: skip
    """List steps that stand one ulp from another answer, and how many answers that puts at risk."""
    from forensics.runs.fleet_screen import risk_screen
    from forensics.runs.risk import risk as run
    from forensics.searching import scope

    with opened(db) as store:
        told = run(store, scope(store, since, until, replica, model), ulps)
    if format is ListFormat.json:
        document(told.document())
    else:
        show(risk_screen(told, screen()[0]))
    raise typer.Exit(0 if told.whole.steps else INCONCLUSIVE)
