"""One life of one replica: which one a person means, and all that is on record of its launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.completeness import losses, lost
from forensics.errors import INCONCLUSIVE, USAGE, ForensicsError
from forensics.launches import END, launches
from forensics.text import printable, shell

if TYPE_CHECKING:
    from forensics.completeness import Loss
    from forensics.store import Store
    from forensics.timeline import Thresholds

LISTED = 10


@dataclass(frozen=True)
class Run:
    """engine: the engine record, at least run_id and replica_id. launches: of `launches.py`, one row an engine step.

    tactics: engine_step, tactic, launches: which algorithms ran. told_by: what says so ('algorithm', or 'shape class',
    which stands in for it). arrivals: as in `Evidence`. losses: what is known to be missing of the run.
    """

    engine: dict[str, Any]
    launches: pl.DataFrame
    tactics: pl.DataFrame
    told_by: str
    arrivals: pl.DataFrame
    losses: tuple[Loss, ...]

    @property
    def identity(self) -> tuple[str, str]:
        """Return (run_id, replica_id)."""
        return self.engine["run_id"], self.engine["replica_id"]


def find_run(store: Store, name: str, replica: str | None = None) -> dict[str, Any]:
    """Return run_id and replica_id of the one run whose id is or begins with `name`. Raises for none or several."""
    known = store.ask("run_spans").to_dicts()
    if not known:
        hint = "a recorder writes them: forensics record -- COMMAND…"
        raise ForensicsError("no launch is on record: a timeline needs batch records", INCONCLUSIVE, hint)
    here = [row for row in known if replica is None or row["replica_id"] == replica]
    found = [row for row in here if row["run_id"] == name] or [row for row in here if row["run_id"].startswith(name)]
    if len(found) == 1:
        return found[0]
    said = f"names {len(found)} runs" if found else "is no run with launches on record"
    listed = [f"  {shell(row['run_id'])} of replica {printable(row['replica_id'], 80)}, {row['launches']} launches"
              for row in (found or known)[:LISTED]]  # fmt: skip
    more = [f"  … and {len(found or known) - LISTED} more"] if len(found or known) > LISTED else []
    hint = "give one of these" + (", or --replica" if len({row["run_id"] for row in found}) == 1 else "")
    raise ForensicsError("\n".join([f"{printable(name, 80)!r} {said}:", *listed, *more]), USAGE, hint)


def read_run(store: Store, run_id: str, replica_id: str, limits: Thresholds) -> Run:
    """Collect what is on record of the launches of one run."""
    where = {"run_id": run_id, "replica_id": replica_id}
    engine = (store.ask("engine", **where).to_dicts() or [{}])[0] | where
    frame = launches(store, engine, limits)
    tactics = store.ask("kernel_tactics", **where, first=0, last=END)
    if tactics.is_empty():
        tactics = frame.drop_nulls("tactic").select("engine_step", "tactic", launches=pl.lit(1))
    told_by = "shape class" if tactics.is_empty() else "algorithm"
    if tactics.is_empty():
        tactics = frame.select("engine_step", tactic="shape", launches=pl.lit(1))
    steps = frame["engine_step"].to_list()
    gone = lost(losses(store), run_id, replica_id, min(steps, default=0), max(steps, default=-1))
    return Run(engine, frame, tactics, told_by, store.ask("arrivals", **where), tuple(gone))
