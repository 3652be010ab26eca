"""Kernels and collectives whose engine step is not stated, placed in the step that they ran in where time tells.

A step's window is its batch record's: `ts`, and `step_ms` of host time from there, over all ranks. What lies in one
window, and in no other, belongs to that step. That holds only while host and device keep pace: on a CPU, or where the
scheduler does not run ahead (`async_scheduling` false); elsewhere a device may work on a step in the next one's window.
Times are Unix seconds of one host; a trace of another host is off by the difference of their clocks.

Rows stay as they were written (`stated_kernel`, `stated_collective`). Readers ask the views, which place the rows anew
each time, so the order of files does not matter.
"""

from __future__ import annotations

from typing import Final

from forensics.contract import kinds

WINDOWS: Final = """
CREATE VIEW step_window AS
WITH rank_window AS (
  SELECT b.run_id, b.replica_id, b.engine_step, min(b.ts) AS begins, max(b.ts + b.step_ms / 1e3) AS ends
  FROM batch b JOIN engine e USING (run_id, replica_id)
  WHERE b.ts IS NOT NULL AND b.step_ms IS NOT NULL AND (e.device_type = 'cpu' OR e.async_scheduling = false)
  GROUP BY ALL
)
SELECT *,
  max(ends) OVER (PARTITION BY run_id, replica_id ORDER BY begins, engine_step
                  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS others_end,
  lead(begins) OVER (PARTITION BY run_id, replica_id ORDER BY begins, engine_step) AS next_begins
FROM rank_window
"""
"""A window, the latest end of those that began before it, and when the next one begins."""
ENDS: Final = {
    "kernel": "k.start_ts + coalesce(k.dur_us, 0) / 1e6",
    "collective": "coalesce(k.end_ts, k.start_ts + coalesce(k.comm_ms, 0) / 1e3)",
}


def ddl() -> tuple[str, ...]:
    """Return the statements that create the windows and the two views."""
    return (WINDOWS, *(_view(kind, ends) for kind, ends in ENDS.items()))


def _view(kind: str, ends: str) -> str:
    alone = (
        f"{ends} <= w.ends AND coalesce(w.others_end <= k.start_ts, true) AND coalesce({ends} <= w.next_begins, true)"
    )
    shown = ", ".join(
        f"coalesce(k.engine_step, CASE WHEN {alone} THEN w.engine_step END) AS engine_step"
        if name == "engine_step"
        else f'k."{name}"'
        for name in kinds()[kind].columns()
    )
    return (
        f"CREATE VIEW {kind} AS SELECT {shown} FROM stated_{kind} k ASOF LEFT JOIN step_window w "  # noqa: S608
        "ON k.run_id = w.run_id AND k.replica_id = w.replica_id AND k.start_ts >= w.begins"
    )
