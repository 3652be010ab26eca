"""Commands that put an engine on record."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forensics.cli.app import Grouped, above_zero, app, examples
from forensics.console import say
from forensics.errors import INCONCLUSIVE

if TYPE_CHECKING:
    from forensics.recorded import Recording

CONTENT, VOLUME, RING = "What is recorded", "Volume", "Ring buffer: write only around a trigger"


class Compress(StrEnum):
    """How segments are packed."""

    auto = "auto"
    zstd = "zstd"
    gzip = "gzip"
    none = "none"


class Trigger(StrEnum):
    """What makes a ring buffer write itself out."""

    thin_margin = "thin_margin"
    preemption = "preemption"
    regime = "regime"
    signal = "signal"


def amount(name: str, unit: str, help: str, group: str) -> typer.models.OptionInfo:
    """Return an option that takes a number above 0."""
    made: typer.models.OptionInfo = typer.Option(
        name, metavar=unit, parser=above_zero, help=help, rich_help_panel=group
    )
    return made


@app.command(
    cls=Grouped, context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "forensics record --with-ids -o rec -- vllm serve MODEL",
        "forensics record -- python tools/tiny_service.py fixtures/models/tiny-llama",
        "forensics record --python /srv/venv/bin/python -- vllm serve MODEL",
        "forensics record --ring 60 --trigger preemption --keep-mb 2048 -- …",
    ),
)  # fmt: skip
def record(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="The server or program to run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the recording.")] = Path("recording"),
    python: Annotated[
        str | None,
        typer.Option(
            "--python", metavar="INTERPRETER",
            help="Interpreter of the server; checked first, and what lies beside it comes first on PATH.",
        ),
    ] = None,
    replica: Annotated[str | None, typer.Option("--replica", metavar="NAME", help="Name of this replica.")] = None,
    with_ids: Annotated[
        bool, typer.Option("--with-ids", help="Token ids: needed for replay, sensitive.", rich_help_panel=CONTENT)
    ] = False,
    logits_sha256: Annotated[
        bool,
        typer.Option(
            "--logits-sha256", rich_help_panel=CONTENT, help="Hash every row of logits: proves equal bits, costs time."
        ),
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", min=1, help="One whole engine step in N.", rich_help_panel=CONTENT),
    ] = None,
    device_s: Annotated[
        float | None, amount("--device-s", "SECONDS", "Sample the device this often.", CONTENT)
    ] = None,
    compress: Annotated[
        Compress | None, typer.Option("--compress", help="How files are packed.", rich_help_panel=VOLUME)
    ] = None,
    segment_mb: Annotated[float | None, amount("--segment-mb", "MIB", "New file at this size.", VOLUME)] = None,
    segment_s: Annotated[float | None, amount("--segment-s", "SECONDS", "New file at this age.", VOLUME)] = None,
    keep_mb: Annotated[float | None, amount("--keep-mb", "MIB", "Delete old files beyond this.", VOLUME)] = None,
    keep_s: Annotated[float | None, amount("--keep-s", "SECONDS", "Delete files older than this.", VOLUME)] = None,
    ring: Annotated[float | None, amount("--ring", "SECONDS", "Keep so much in memory.", RING)] = None,
    trigger: Annotated[
        list[Trigger] | None,
        typer.Option(
            "--trigger", metavar="NAME", rich_help_panel=RING,
            help=f"Write it out on {', '.join(Trigger)}. Repeatable.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Run a server or program with the recorder on; returns its exit code. Signals sent to it reach the command.

    With --python a command that begins with `python` runs that interpreter, and scripts like `vllm` are those beside
    it. This package need not be installed there.
    """
    from forensics import interpreter
    from forensics.recording import Settings, environment, prepare
    from forensics.recording import record as run

    if trigger and ring is None:
        raise typer.BadParameter("needs --ring SECONDS, of which it writes", param_hint="--trigger")
    settings = Settings(
        ids=with_ids, logits_sha256=logits_sha256, replica=replica, compress=compress, segment_mb=segment_mb,
        segment_s=segment_s, keep_mb=keep_mb, keep_s=keep_s, ring_s=ring,
        triggers=tuple(trigger or ()), sample=sample, device_s=device_s,
    )  # fmt: skip
    variables = environment(out, settings)
    if python is not None:
        path = interpreter.find(python)
        variables = interpreter.activated(path, variables)
        say(interpreter.check(path, variables))
        command = interpreter.command_under(path, command)
    prepare(out)
    done = run(command, out, variables)
    if not done.reported:
        say(f"no recorder reported in: nothing usable is in {out}")
        say("the command must run Python 3.11 or later that reads PYTHONPATH, and start a vLLM engine, or call")
        say("transformers' generate() or continuous batching; `--python` checks its interpreter before the start")
        raise typer.Exit(done.exit_code or INCONCLUSIVE)
    _tell(done, out)
    raise typer.Exit(done.exit_code)


def _tell(done: Recording, out: Path) -> None:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(done.records.items()))
    size = f"{done.bytes / (1 << 20):.1f} MiB" if done.bytes >= 1 << 20 else f"{done.bytes / 1024:.1f} KiB"
    say(f"recorded {done.requests} requests ({counts} records) in {len(done.files)} file(s) in {out}, {size}")
    thinned = f", {done.thinned} left out as asked" if done.thinned else ""
    say(f"{done.dropped} dropped, {done.faults} recorder faults{thinned}")
    if (cost := done.cost) is not None:
        share = "" if cost.share() is None else f" ({cost.share():.2%} of the time)"
        say(f"cost: {cost.hook_s:.2f} s in hooks of the server{share}, {cost.writer_cpu_s:.2f} s of CPU to write")
    for path in done.damaged:
        say(f"{path} cannot be read to its end; ingest will say what of it stands")
    say(f"next: forensics ingest {out}")
