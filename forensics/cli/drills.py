"""Commands that make an engine run to see what its answers depend on: the drill, and the map."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from forensics.cli.app import AsList, ListFormat, above_zero, app, examples
from forensics.console import say, table
from forensics.drill.regimes import REGIMES, WITHOUT_POOL
from forensics.errors import ForensicsError


class Engine(StrEnum):
    """What serves the requests of a drill."""

    transformers = "transformers"
    continuous = "transformers-continuous"
    vllm = "vllm"


class Dtype(StrEnum):
    """Dtype of the weights."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class MapEngine(StrEnum):
    """What runs the launches of a map."""

    transformers = "transformers"
    vllm = "vllm"


class MapFormat(StrEnum):
    """How a map is shown."""

    table = "table"
    json = "json"
    markdown = "markdown"


DrillRegime = StrEnum("DrillRegime", list(REGIMES))  # type: ignore[misc] # one choice for every regime there is


@app.command(
    epilog=examples(
        "forensics drill MODEL",
        "forensics drill fixtures/models/tiny-llama --requests 4 --max-tokens 8",
        "forensics drill MODEL --engine vllm --python /srv/venv/bin/python",
        "forensics drill MODEL --prompts mine.jsonl --minutes 5",
    )
)
def drill(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the model.")],
    engine: Annotated[
        Engine,
        typer.Option(
            "--engine", metavar="ENGINE", help=f"What serves: {', '.join(Engine)}; plain transformers: static batches."
        ),
    ] = Engine.continuous,
    python: Annotated[str, typer.Option("--python", help="Interpreter that has the engine.")] = sys.executable,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the recording.")] = Path("drill"),
    regime: Annotated[
        list[DrillRegime] | None,
        typer.Option(
            "--regime",
            metavar="NAME",
            help=f"Only this one: {', '.join(DrillRegime)}. Repeatable. Default: all that the engine can have.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A prompt a line, or JSONL with family and prompt.")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=2, max=1024, help="Requests in flight.")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, max=4096, help="Tokens of one answer.")] = 48,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", metavar="NAME", help="auto (as the folder says), bfloat16, float16 or float32.")
    ] = Dtype.auto,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, max=100_000, help="Of each regime. Default: each prompt once.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", parser=above_zero, help="Ask nothing more after so long.")
    ] = None,
    format: AsList = ListFormat.table,
) -> None:
    """Ask the same prompts at idle and under regimes of load, and count the answers that differ.

    Exit code 0 without a flip, 1 with one, 4 where the drill cannot tell. Every request is on record: explain works.
    """
    from forensics.drill import report
    from forensics.drill.prompts import built_in, from_file
    from forensics.drill.rates import measure
    from forensics.drill.run import INTERRUPTED, check_model, holds_recording, plan, refuse_recording, run
    from forensics.load import load
    from forensics.store import Store

    check_model(model)
    refuse_recording(out)
    asked = built_in() if prompts is None else from_file(prompts)
    fitting = [name for name, one in REGIMES.items() if one.kv_pool == "ample" or engine.value not in WITHOUT_POOL]
    chosen = [one.value for one in regime] if regime else fitting
    planned = plan(asked, chosen, engine.value, concurrency, max_tokens, requests or len(asked), dtype.value)
    say(f"drill: {planned.budget()}")
    ended = run(planned, model, python, out, minutes, say)
    if ended.interrupted and not holds_recording(out):
        raise ForensicsError("interrupted before anything was recorded", INTERRUPTED)
    with Store.in_memory() as store:
        load([out], store)
        done = measure(store, planned)
    report.show(done, planned, model.resolve().name, as_json=format is ListFormat.json)
    for line in report.notes(done, planned, out, interrupted=ended.interrupted):
        say(line)
    raise typer.Exit(report.exit_code(done))


@app.command(
    name="map",
    epilog=examples(
        "forensics map fixtures/models/tiny-llama --rows 4 --tokens 32",
        "forensics map MODEL --prompt-tokens 16 --prompt-tokens 64 -o map.svg",
        "forensics map MODEL --engine vllm --python /srv/venv/bin/python",
    ),
)
def plan_map(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the model.")],
    engine: Annotated[
        MapEngine, typer.Option("--engine", help="Static batches of transformers, or vLLM.")
    ] = MapEngine.transformers,
    python: Annotated[str, typer.Option("--python", help="Interpreter that has the engine.")] = sys.executable,
    rows: Annotated[int, typer.Option("--rows", min=1, max=1024, help="Most requests of a launch.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=65536, help="Most tokens of a launch.")] = 128,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option("--prompt-tokens", min=1, max=16384, help="Length of the request. Repeatable.  [default: 16]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Draw it too: a name that ends in .svg or .png.")
    ] = None,
    format: Annotated[MapFormat, typer.Option("--format", help="How to show it.")] = MapFormat.table,
) -> None:
    """Vary request rows and launch tokens by themselves, and show which launches give one request the same bits."""
    from forensics import map_picture
    from forensics.plan_map import report
    from forensics.plan_map.run import make

    if out is not None and out.suffix not in map_picture.SUFFIXES:
        raise typer.BadParameter("the name must end in .svg or .png", param_hint="--out")
    if out is not None:
        map_picture.prepare(out)
    found = make(model, engine.value, python, rows, tokens, prompt_tokens or [16])
    if out is not None:
        map_picture.draw(found, out)
    if format is MapFormat.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    elif format is MapFormat.markdown:
        print(report.document(found, out.name if out else None), end="")
    else:
        table(report.LINES, report.lines(found))
        for phase in ("prefill", "decode"):
            print()
            table(*report.grid(found, phase))
        for line in report.notes(found):
            say(line)
    if out is not None:
        say(f"wrote {out}")
    raise typer.Exit(report.exit_code(found))
