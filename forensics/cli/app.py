"""The application object and what several commands share: options, opening a store, limits of the regimes."""

from __future__ import annotations

import contextlib
import math
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from forensics.store import Store
    from forensics.timeline import Thresholds

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Postmortems of LLM serving: same prompt, same checkpoint, temperature 0, different answer. Why?",
)  # fmt: skip


class Grouped(TyperCommand):
    """A command whose `--help` lists options under their `rich_help_panel`, in plain text as everywhere."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group, in the order in which they first come."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            plain = "Arguments" if param.param_type_name == "argument" else "Options"
            if (entry := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "rich_help_panel", None) or plain, []).append(entry)
        for title, entries in groups.items():
            with formatter.section(title):
                formatter.write_dl(entries)


def examples(*commands: str) -> str:
    """Return the end of a `--help`: commands as they are typed. The first character keeps lines from being joined."""
    return "\n".join(("\b", "Examples:", *(f"  {one}" for one in commands)))


class ListFormat(StrEnum):
    """How a list is shown."""

    table = "table"
    json = "json"


MOST_COMPLETED = 50


def known_requests(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete a request id from the store. Says nothing when it cannot: a shell waits for the answer.

    Ids come from a log: those that a shell would not take as one plain word are left out.
    """
    with contextlib.suppress(Exception), opened(Path(ctx.params.get("db") or STORE)) as store:
        ids = store.ask("ids_like", req_id=incomplete)["req_id"].to_list()
        return [name for name in ids if shlex.quote(name) == name][:MOST_COMPLETED]
    return []


def known_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the id of a run that has launches, as `known_requests` does."""
    with contextlib.suppress(Exception), opened(Path(ctx.params.get("db") or STORE)) as store:
        ids = store.ask("run_spans")["run_id"].unique(maintain_order=True).to_list()
        return [name for name in ids if name.startswith(incomplete) and shlex.quote(name) == name][:MOST_COMPLETED]
    return []


Db = Annotated[
    Path, typer.Option("--db", envvar="FORENSICS_DB", readable=False, help="The store: a DuckDB index of the log.")
]
ReqId = Annotated[
    str, typer.Argument(metavar="REQ", help="Request id: the engine's or the client's.", autocompletion=known_requests)
]
Against = Annotated[
    str | None,
    typer.Option("--against", metavar="REQ", help="Compare with this request.", autocompletion=known_requests),
]
FreeMb = Annotated[float, typer.Option("--free-mb", help="Below this much free memory the regime is memory_pressured.")]
QueueMs = Annotated[float, typer.Option("--queue-p95-ms", help="Above this queue p95 the regime is queue_degraded.")]
Evaporated = Annotated[
    float, typer.Option("--evaporation-ratio", help="Below this share of the KV pool free memory has evaporated.")
]
AsList = Annotated[ListFormat, typer.Option("--format", help="A table to read, or JSON for programs.")]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Not over before: 2026-11-23T14:32Z, 14:32, 2h, or Unix seconds."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Begun by then; forms as for --since.")]
Replica = Annotated[str | None, typer.Option("--replica", help="Only this replica.")]
Model = Annotated[str | None, typer.Option("--model", help="Only models whose name holds this, in any case.")]
STORE = Path("forensics.duckdb")


def refuse_store(out: Path) -> None:
    """Refuse to write a document over a folder, a store or a recording."""
    if out.is_dir():
        raise ForensicsError(f"{out}: a folder", 2, "give -o a file name")
    if out.is_file():
        with contextlib.suppress(OSError), out.open("rb") as file:
            head = file.read(12)
            if head[8:12] == b"DUCK" or head[:2] == b"\x1f\x8b" or out.suffix == ".jsonl":
                raise ForensicsError(f"{out}: a store or a recording; it is not written over", 2, "choose another -o")


@contextlib.contextmanager
def opened(db: Path, *, read_only: bool = True) -> Iterator[Store]:
    """Open the store at `db` for the length of one command."""
    from forensics.store import Store

    with Store.open(db, read_only=read_only) as store:
        yield store


def limits(free_mb: float = 1024.0, queue_p95_ms: float = 50.0, evaporation_ratio: float = 0.05) -> Thresholds:
    """Return the borders of the regimes that the user set."""
    from forensics.timeline import Thresholds

    return Thresholds(free_mb=free_mb, queue_p95_ms=queue_p95_ms, evaporation_ratio=evaporation_ratio)


def above_zero(text: str) -> float:
    """Return the number that an option gives. Raises BadParameter for anything but a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{text!r} is not a number above 0")
    return value
