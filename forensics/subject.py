"""Of which run a trace of another tool is: it knows none, so whoever files it says so, and says it once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from forensics import ingest
from forensics.errors import BAD_INPUT, ForensicsError
from forensics.registry import members
from forensics.text import printable, shell
from forensics.values import Rejected, shown

if TYPE_CHECKING:
    from forensics.files import Found
    from forensics.ingest import Entry
    from forensics.store import Store


class Subject(NamedTuple):
    """What a person says of a trace. rank: for one whose content does not state it. None: not said."""

    run_id: str | None = None
    replica_id: str | None = None
    rank: int | None = None

    def said(self) -> dict[str, str | int]:
        """Return what was said, by the name of its field in a record."""
        return {name: value for name, value in self._asdict().items() if value is not None}


UNSAID = Subject()


def knows_run(found: Found) -> bool:
    """Return whether the format is one of ours, whose records state their run."""
    return bool(getattr(members(ingest)[found.format], "KNOWS_RUN", True))


def applied(found: Found, source: dict[str, Any], subject: Subject, store: Store) -> Subject:
    """Return what is to be said of this file, and note it in its source row.

    Raises ForensicsError where the run of a trace was not said, or other than when it was filed first: its records
    would stand twice.
    """
    if knows_run(found):
        return UNSAID
    if subject.run_id is None:
        known = [f"--run {shell(run)}" for run in store.ask("runs")["run_id"].unique().sort().to_list() if run]
        listed = f"; on file: {', '.join(known[:4])}{', …' * (len(known) > 4)}" if known else ""
        hint = f"say which: --run RUN [--replica REPLICA] [--rank RANK]{listed}"
        raise ForensicsError(f"{found.path}: a trace ({found.format}), which knows no run", BAD_INPUT, hint)
    before = Subject(*json.loads(source["subject"]))
    if source["bytes"] is not None and before != subject:
        said = " ".join(f"--{name.removesuffix('_id')} {value}" for name, value in before.said().items())
        message = f"{found.path}: on file already with {printable(said)}"
        raise ForensicsError(message, BAD_INPUT, "if that was wrong, build the store again from its logs")
    source["subject"] = json.dumps(subject)
    return subject


def said_of(entry: Entry, found: Found, subject: Subject) -> Entry:
    """Return an entry with what was said of its file. Raises ForensicsError where the trace states another rank."""
    if subject == UNSAID or isinstance(entry.record, Rejected):
        return entry
    stated = entry.record.get("rank", subject.rank)
    if subject.rank is not None and stated != subject.rank:
        message = f"{found.path}: a trace of rank {shown(stated)}, as it says itself, not {subject.rank}"
        raise ForensicsError(message, BAD_INPUT, "leave out --rank")
    return entry._replace(record=subject.said() | entry.record)
