"""A captured graph was replayed in one arm, and eager code or another graph ran in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.contrast import contrast
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.PLAN
SEEN = "simulated only"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare `graph_mode` (or the plan factor graph.mode) of each step: the mode, and the key of the graph.

    Competitors of it as a cause of other logits: the shape, from which an engine chooses the graph; the kernels.
    """
    found = contrast(incident, _mode)
    if not found.compared:
        yield Gap("graph_mode_change", "batch.graph_mode", "whether a captured graph was replayed in one of the runs")
        return
    if not found.places:
        return
    _, ours, theirs = found.places[0]
    one, other = _mode(ours or {})["graph"], _mode(theirs or {})["graph"]
    yield Finding(
        "graph_mode_change", RUNG,
        f"another graph mode in {len(found.places)} of {found.compared} compared steps up to the flip: first {one!r}, "
        f"in the reference {other!r}",
        found.onset, one, other, steps=found.steps, citations=found.cite(incident),
    )  # fmt: skip


def _mode(row: dict[str, Any]) -> Facts:
    mode = row["graph_mode"] or dict(row["batch_plan"] or {}).get("graph.mode")
    return {} if mode is None else {"graph": mode}
