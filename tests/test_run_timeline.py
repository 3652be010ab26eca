"""A run over time: told from a real recording and from made-up ones, at every width, and where little is on record."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from forensics.bars import ASCII, UNICODE
from forensics.errors import ForensicsError
from forensics.load import load
from forensics.runs.run import find_run, read_run
from forensics.runs.screen import NAMES, timeline_screen
from forensics.runs.timeline import RunTimeline, timeline
from forensics.store import Store
from forensics.timeline import Thresholds
from tests.story import Story

LOG = Path(__file__).parent.parent / "fixtures" / "incidents" / "vllm-preemption" / "log"
RUN = "vllm-1a2089f7b05-20196"


def tell(store: Store, name: str, windows: int = 40) -> RunTimeline:
    named = find_run(store, name)
    return timeline(store, read_run(store, named["run_id"], named["replica_id"], Thresholds()), windows)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Store.open(tmp_path_factory.mktemp("real") / "s.duckdb", create=True) as store:
        load([LOG], store, None)
        yield store


def test_a_real_run(real: Store) -> None:
    found = tell(real, "vllm-1a2089f7b")
    assert (found.run_id, found.replica_id, found.launches, found.missing_steps) == (RUN, "a", 464, 0)
    assert sum(one.launches for one in found.spans) == sum(one.launches for one in found.windows) == 464
    assert {one.state for one in found.spans} == {"memory_pressured", "paging"}
    assert len(found.transitions) == len(found.spans) - 1
    assert found.transitions[0].why == "paging off → on"
    assert sum(one.preempted or 0 for one in found.windows) == 5
    assert max(one.rows or 0 for one in found.windows) == 7
    assert max(one.waiting or 0 for one in found.windows) == 2
    assert found.tactics_told_by == "shape class"
    calm, loaded = found.windows[2], max(found.windows, key=lambda one: one.rows or 0)
    assert (calm.churn or 0) < 0.2 < 0.8 < (loaded.churn or 0)
    assert not any(one.collapse for one in found.changes)
    assert found.losses == ()
    assert [one.code for one in found.gaps] == ["algorithm_change"]
    json.dumps(found.document())


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_it_fits_a_screen(real: Store, width: int) -> None:
    lines = list(timeline_screen(tell(real, RUN, width - NAMES), width, UNICODE))
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= {40: 62, 60: 42, 80: 34, 100: 32}[width]
    rows = next(line for line in lines if line.startswith("rows"))
    assert "█" in rows
    plain = "\n".join(timeline_screen(tell(real, RUN, width - NAMES), width, ASCII))
    assert plain.isascii()


def test_lost_records_are_where_they_were_lost(tmp_path: Path) -> None:
    lines = gzip.decompress(next(LOG.glob("vllm-1*")).read_bytes()).decode().splitlines()
    steps = [json.loads(line).get("engine_step") for line in lines]
    kept = [line for line, step in zip(lines, steps, strict=True) if step is None or not 200 <= step <= 220]
    (tmp_path / "log.jsonl").write_text("\n".join(kept) + "\n")
    with Store.open(tmp_path / "s.duckdb", create=True) as store:
        load([tmp_path / "log.jsonl"], store, None)
        found = tell(store, RUN)
    assert found.missing_steps == 21
    assert found.losses
    assert [one.first_step <= 221 and one.last_step >= 199 for one in found.windows if one.lost] == [True] * sum(
        bool(one.lost) for one in found.windows
    )
    assert 1 <= sum(bool(one.lost) for one in found.windows) <= 3
    shown = "\n".join(timeline_screen(found, 120, UNICODE))
    assert "21 engine steps without a record" in shown
    assert "records missing" in shown


def tactics(*algorithms: str) -> Story:
    story = Story().engine()
    for number, name in enumerate(algorithms):
        story.request(f"r{number}", tuple(range(20)), batch_fields={"algo_id": name})
    return story


def test_tactics_against_how_the_run_began(tmp_path: Path) -> None:
    with tactics("42", "42", "42", "17").tell(tmp_path) as store:
        found = tell(store, "run-1", 4)
    assert found.tactics_told_by == "algorithm"
    assert [one.churn for one in found.windows] == [0, 0, 0, 1]
    assert found.windows[3].moved in (("17", 0.0, 1.0), ("42", 1.0, 0.0))
    with tactics("42", "42", "42", "42").tell(tmp_path / "same") as store:
        steady = tell(store, "run-1", 4)
    assert [one.churn for one in steady.windows] == [0, 0, 0, 0]
    assert "those of the first quarter" in "\n".join(timeline_screen(steady, 80, UNICODE))


def test_names_of_runs(tmp_path: Path) -> None:
    one, other = (Story(name).engine().request("a", (1, 2)) for name in ("night-1", "night-2"))
    with one.tell(tmp_path, other) as store:
        assert find_run(store, "night-2")["run_id"] == "night-2"
        for name, says in (("night", "names 2 runs"), ("day", "is no run")):
            with pytest.raises(ForensicsError, match=says) as fault:
                find_run(store, name)
            assert fault.value.exit_code == 2
            assert "night-1" in fault.value.message
    with Store.in_memory() as store, pytest.raises(ForensicsError, match="no launch is on record") as fault:
        find_run(store, "x")
    assert fault.value.exit_code == 4


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    story = Story("\x1b[31mrun\n").engine(engine="[bold]v\x07llm").request("a", (1, 2, 3))
    with story.tell(tmp_path) as store:
        shown = list(timeline_screen(tell(store, "\x1b[31mrun\n"), 80, UNICODE))
    assert not any(char in line for line in shown for char in "\x1b\x07\n")
