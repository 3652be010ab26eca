"""Kernels and collectives find the step that they ran in, where time tells and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forensics.load import load
from forensics.store import Store
from forensics.subject import Subject

VERBOSE = Path(__file__).parents[1] / "fixtures" / "traces" / "tiny-llama-verbose"


def placed(tmp_path: Path, records: list[dict[str, Any]], **engine: Any) -> dict[str, int | None]:
    """Return the step of every kernel and collective, by name."""
    batches = [(1, 10.0, 100.0), (2, 10.2, 100.0), (3, 10.4, 100.0), (4, 10.45, 20.0), (5, 10.8, None)]
    log = [
        {"kind": "engine", "device_type": "cpu"} | engine,
        *({"kind": "batch", "engine_step": step, "ts": ts, "step_ms": ms} for step, ts, ms in batches),
        {"kind": "batch", "engine_step": 2, "rank": 1, "ts": 10.25, "step_ms": 100.0},
        *records,
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"run_id": "r"} | record) + "\n" for record in log))
    with Store.in_memory() as store:
        (summary,) = load([path], store)
        assert summary.quarantined == 0
        return dict(store.run("SELECT name, engine_step FROM kernel UNION ALL SELECT op, engine_step FROM collective"))


def kernel(name: str, start: float | None, us: float | None = 1000.0, **fields: Any) -> dict[str, Any]:
    return {"kind": "kernel", "name": name, "start_ts": start, "dur_us": us} | fields


KERNELS = [
    kernel("inside", 10.01), kernel("without duration", 10.05, None), kernel("in the window of another rank", 10.33),
    kernel("before all", 9.9), kernel("between", 10.15), kernel("across the end", 10.0995),
    kernel("in two", 10.46), kernel("in the first of two", 10.41), kernel("into the second", 10.4495),
    kernel("where a step has no length", 10.81), kernel("without time", None),
    kernel("stated", 10.15, engine_step=77), kernel("of another run", 10.01, run_id="other"),
    {"kind": "collective", "rank": 0, "op": "ends inside", "start_ts": 10.01, "end_ts": 10.09},
    {"kind": "collective", "rank": 0, "op": "ends outside", "start_ts": 10.01, "comm_ms": 95.0},
]  # fmt: skip
INSIDE = {
    "inside": 1, "without duration": 1, "in the window of another rank": 2, "in the first of two": 3, "ends inside": 1,
}  # fmt: skip


@pytest.mark.parametrize("engine", [{}, {"device_type": "cuda", "async_scheduling": False}])
def test_what_lies_in_one_window_alone_is_of_that_step(tmp_path: Path, engine: dict[str, Any]) -> None:
    found = placed(tmp_path, KERNELS, **engine)
    assert len(found) == len(KERNELS)
    assert {name: step for name, step in found.items() if step is not None} == INSIDE | {"stated": 77}


@pytest.mark.parametrize("engine", [{"device_type": "cuda"}, {"device_type": "cuda", "async_scheduling": True}])
def test_a_device_that_may_lag_behind_is_not_placed_by_time(tmp_path: Path, engine: dict[str, Any]) -> None:
    found = placed(tmp_path, KERNELS, **engine)
    assert {name: step for name, step in found.items() if step is not None} == {"stated": 77}


@pytest.mark.parametrize("order", [("server.log.gz", "run.jsonl.gz"), ("run.jsonl.gz", "server.log.gz")])
def test_a_log_of_onednn_beside_the_recording_of_its_run(order: tuple[str, str]) -> None:
    with Store.in_memory() as store:
        for name in order:
            subject = (
                Subject() if name.startswith("run") else Subject("transformers-1a209ffc99f-15203", "vm-transformers")
            )
            load([VERBOSE / name], store, subject=subject)
        rows = store.run(
            "SELECT k.engine_step, count(*), list(DISTINCT k.shape), min(b.batch_tokens) FROM kernel k "
            "JOIN batch b USING (run_id, engine_step) WHERE k.name LIKE 'brg_matmul%' GROUP BY 1 ORDER BY 1"
        )
        unplaced = store.run("SELECT count(*) FROM kernel WHERE engine_step IS NULL AND start_ts IS NOT NULL")
    assert [(step, count) for step, count, _, _ in rows] == [(step, 15) for step in range(6)]
    assert unplaced == [(0,)]
    for _, _, shapes, tokens in rows:  # two layers of seven products, and the head for the rows that chose a token
        assert {f"m={tokens},n={n},k={k}" for n, k in ((288, 288), (96, 288), (576, 288), (288, 576))} <= set(shapes)
