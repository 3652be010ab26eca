"""How complete the evidence is: what is missing of each recorder's stream, and whose fault that is.

A record can be absent because it was *lost* (its number is missing from the file, or the recorder counted it as
dropped) or because the recorder was told not to keep it (*policy*: thinned, or an old segment deleted). Only a loss is
a gap in the evidence. A stream without sequence numbers cannot tell.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from forensics.text import moment, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.store import Store

Key = tuple[Any, ...]
TOTALS: Final = {"drops": "dropped", "thinned": "records", "segments_deleted": "records"}
"""Event → the member of its detail that says how many records so far."""


@dataclass(frozen=True)
class Loss:
    """Records that a recorder wrote or meant to write, and that are not on file.

    why: 'missing' (their numbers are skipped), 'dropped' (the recorder said so). They belong between the engine steps
    `after_step` and `until_step`, both included; None is open. source and line show it; a gap has no line.
    """

    run_id: str
    replica_id: str
    writer: str
    why: str
    records: int
    after_step: int | None
    until_step: int | None
    source: str
    line: int | None = None

    def touches(self, first: int, last: int) -> bool:
        """Return whether some of it may belong to an engine step from `first` to `last`."""
        after = -1 if self.after_step is None else self.after_step
        return after <= last and (self.until_step is None or self.until_step >= first)

    def told(self) -> str:
        """Return it as half a sentence."""
        begin = "the beginning" if self.after_step is None else f"engine step {self.after_step}"
        end = "the end" if self.until_step is None else f"engine step {self.until_step}"
        return f"{self.records} records {self.why} between {begin} and {end} ({printable(self.source)})"


@dataclass(frozen=True)
class RunInFile:
    """One run in one file. missing: None where lines have no numbers. by_policy: left out as asked, and no loss.

    shut_down: the end of the run is on record, in whatever file; None for records that name no run.
    """

    replica: str
    run: str
    begins: float | None
    ends: float | None
    missing: int | None
    dropped: int
    by_policy: int
    faults: int
    shut_down: bool | None
    clock: str
    rows: int
    set_aside: int
    format: str
    file: str

    def row(self) -> dict[str, Any]:
        """Return what a list shows of it."""
        return vars(self) | {"begins": moment(self.begins), "ends": moment(self.ends)}


def losses(store: Store) -> list[Loss]:
    """Return all that is known to be lost, in the order of runs and writers."""
    events = store.ask("recorder_events").to_dicts()
    deleted = {
        writer: max(_number(row, "records") for row in rows)
        for writer, rows in _grouped(events, "segments_deleted").items()
    }
    found = []
    for row in store.ask("gaps").to_dicts():
        if row["first_seq"] > deleted.get(_writer(row), 0):
            ends = int(row["missing"]), row["after_step"], row["until_step"]
            found.append(Loss(row["run_id"], row["replica_id"], row["writer"], "missing", *ends, row["source_path"]))
    for told in _grouped(events, "drops").values():
        found += [_dropped(store, row, since, count) for row, since, count in _growth(told) if count]
    return found


def lost(known: list[Loss], run_id: str, replica_id: str, first: int, last: int) -> list[Loss]:
    """Return which losses may be of the engine steps from `first` to `last` of one run: the gap to name in an answer.

    A recorder tells how many records it dropped since it last told, not where: such a loss spans all the time between.
    """
    run = (run_id, replica_id)
    return [loss for loss in known if (loss.run_id, loss.replica_id) == run and loss.touches(first, last)]


def runs_in_files(store: Store) -> list[RunInFile]:
    """Return every run of every file, with what is missing where it shows: in the file after the gap."""
    missing: dict[Key, int] = defaultdict(int)
    counts: dict[tuple[str, Key], int] = defaultdict(int)
    for loss in losses(store):
        if loss.why == "missing":
            missing[loss.source, loss.run_id, loss.replica_id] += loss.records
    events = store.ask("recorder_events").to_dicts()
    for what in TOTALS:
        for told in _grouped(events, what).values():
            for row, _, count in _growth(told):
                counts[what, (row["source_path"], row["run_id"], row["replica_id"])] += count
    for row in events:
        if row["what"] == "recorder_fault":
            counts["faults", (row["source_path"], row["run_id"], row["replica_id"])] += 1
    ended = {(row["run_id"], row["replica_id"]) for row in events if row["what"] == "shutdown"}
    found = []
    for row in store.ask("runs").to_dicts():
        key = (row["source_path"], row["run_id"], row["replica_id"])
        found.append(
            RunInFile(
                file=row["source_path"], format=row["format"], rows=row["read"], set_aside=row["quarantined"],
                replica=row["replica_id"], run=row["run_id"], begins=row["first_ts"], ends=row["last_ts"],
                missing=None if row["unnumbered"] and not missing[key] else missing[key],
                dropped=counts["drops", key], by_policy=counts["thinned", key] + counts["segments_deleted", key],
                faults=counts["faults", key], shut_down=key[1:] in ended if row["run_id"] else None, clock=_clock(row),
            )
        )  # fmt: skip
    return found


def overlapping(runs: list[RunInFile]) -> list[tuple[RunInFile, RunInFile]]:
    """Return neighbouring runs of one replica that were alive together: one id, two engines."""
    spans: dict[tuple[str, str], list[RunInFile]] = defaultdict(list)
    for one in runs:
        if one.run and one.replica and one.begins is not None:
            spans[one.replica, one.run].append(one)
    by_replica: dict[str, list[tuple[float, float, RunInFile]]] = defaultdict(list)
    for (replica, _), parts in spans.items():
        begins, ends = min(one.begins or 0.0 for one in parts), max(one.ends or 0.0 for one in parts)
        by_replica[replica].append((begins, ends, parts[0]))
    ordered = (sorted(group, key=lambda one: one[:2]) for group in by_replica.values())
    return [(one[2], other[2]) for group in ordered for one, other in pairwise(group) if other[0] < one[1]]


def in_a_line(runs: list[RunInFile]) -> str:
    """Return what is missing as one sentence; '' when nothing is known to be."""
    counts = {
        "records are missing from the sequence": sum(one.missing or 0 for one in runs),
        "were dropped by a recorder": sum(one.dropped for one in runs),
        "recorder faults": sum(one.faults for one in runs),
        "pairs of runs of one replica overlap in time": len(overlapping(runs)),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _dropped(store: Store, row: dict[str, Any], since: int | None, count: int) -> Loss:
    run_id, replica_id, writer = _writer(row)
    around = {"run_id": run_id, "replica_id": replica_id, "writer": writer, "first": since, "last": row["seq"]}
    (steps,) = store.ask("steps_around", **around).to_dicts()
    where = steps["after_step"], steps["until_step"], row["source_path"], row["line"]
    return Loss(run_id, replica_id, writer or "", "dropped", count, *where)


def _writer(row: dict[str, Any]) -> Key:
    return row["run_id"], row["replica_id"], row["writer"]


def _grouped(events: list[dict[str, Any]], what: str) -> dict[Key, list[dict[str, Any]]]:
    """Return the events of one kind by writer, in its order."""
    groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for row in events:
        if row["what"] == what:
            groups[_writer(row)].append(row)
    return groups


def _growth(told: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int | None, int]]:
    """Yield each event of one writer, the seq of the one before, and by how much the total that it states has grown."""
    since, total = None, 0
    for row in told:
        now = max(total, _number(row, TOTALS[row["what"]]))
        yield row, since, now - total
        since, total = row["seq"], now


def _number(row: dict[str, Any], name: str) -> int:
    """Return a total that an event's detail states, as a number or by record kind; 0 for anything else."""
    stated = json.loads(row["detail"] or "{}").get(name)
    values = stated.values() if isinstance(stated, dict) else [stated]
    return sum(value for value in values if type(value) is int and value > 0)


def _clock(row: dict[str, Any]) -> str:
    """Return whether monotonic times of the run can be put on the wall clock."""
    related = json.loads(row["clock"] or "{}")
    clocks = row["clocks"]
    if not clocks:
        return "not stated"
    return "related to wall time" if all(name in related for name in clocks) else "wall relation unknown"
