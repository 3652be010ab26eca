"""Measure what docs/fleet.md says: false alarms and detections of change points, and how far the admission rule fits.

PYTHONPATH=. python tools/beyond_figures.py
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from forensics.admission import Limits, limits, reproduced, schedule
from forensics.change_point import ALPHA, shift
from forensics.detectors.state_collapse import collapse
from forensics.evidence import gather
from forensics.load import load
from forensics.store import Store
from forensics.timeline import Thresholds
from forensics.windows import window
from tests.test_change_point import remembering
from tests.test_false_alarms import run

SEEDS = range(1000, 1300)
"""Others than those of the tests."""
INCIDENTS = Path(__file__).parent.parent / "fixtures" / "incidents"


def series() -> None:
    """Print how often one series without a change is called one with a change."""
    for count in (100, 400):
        for memory in (0.0, 0.5, 0.8, 0.9):
            looks = [shift(remembering(count, memory, random.Random(seed))) for seed in SEEDS]  # noqa: S311 - no secret
            judged = [one for one in looks if one is not None]
            alarms = sum(one.p <= ALPHA for one in judged)
            print(f"{count} values, lag-1 correlation {memory}: judged {len(judged)}, alarms {alarms} of {len(looks)}")


def collapses() -> None:
    """Print how often a run is said to have collapsed, without a cause and with one."""
    planted = [(), ("step_time", "waiting"), ("memory", "waiting"), ("step_time", "tactic"),
               ("step_time", "memory", "waiting"), ("memory", "waiting", "tactic")]  # fmt: skip
    for worse in planted:
        for work in (False, True):
            found = sum(collapse(run(seed, work=work, worse=worse)) is not None for seed in SEEDS)
            other = ", three times the work" if work else ""
            print(f"worse: {', '.join(worse) or 'nothing'}{other}: {found} of {len(SEEDS)}")


def admission() -> None:
    """Print in how many launches of each vLLM run the admission rule gives what was recorded."""
    whole = [0, 0]
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "s.duckdb", create=True) as store:
        load(sorted(INCIDENTS.glob("vllm-*/log")), store, None)
        for run_id, replica_id, launches in store.ask("run_spans").select("run_id", "replica_id", "launches").rows():
            where = {"run_id": run_id, "replica_id": replica_id}
            bounds = limits(store.ask("engine", **where).to_dicts()[0])
            if not isinstance(bounds, Limits):
                print(f"{run_id}: {launches} launches, not judged: {bounds}")
                continue
            wrong = seen = 0
            last = launches - 1
            while last >= 0:  # window after window, from the end
                (name,) = store.ask("members", **where, first=last, last=last)["req_id"].head(1)
                row = next(one for one in store.ask("request", req_id=name).to_dicts() if one["run_id"] == run_id)
                lived = window(store, gather(store, row, Thresholds()), last)
                made = schedule(lived, bounds)
                assert isinstance(made, dict)
                wrong += len(reproduced(lived.schedule, made))
                seen += len(lived.schedule)
                last = lived.first_step - 1
            whole = [whole[0] + seen - wrong, whole[1] + seen]
            print(f"{run_id}: {seen - wrong} of {seen} launches")
    print(f"all: {whole[0]} of {whole[1]}")


if __name__ == "__main__":
    admission()
    series()
    collapses()
