"""The true links of an incident: which facts of the target's launches differ from the world without the cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.simulator.replica import Launch, Row

ORDER = (
    "effective_request_drift", "workspace_infeasible", "paging", "queue_pressure", "batch_recomposition",
    "preemption_recompute", "prefix_cache_hit", "shape_class_change", "fragment_misalignment", "algorithm_change",
    "precision_path_change", "graph_mode_change",
)  # fmt: skip


def lived(launches: Sequence[Launch], req_id: str = "asked-b") -> list[tuple[Launch, Row]]:
    """Return the launches of a request with its row, in order."""
    return [(one, row) for one in launches for row in one.rows if row.ask.req_id == req_id]


def chain(
    without: Sequence[Launch], with_cause: Sequence[Launch], roots: tuple[str, ...], flip: int, *, drifted: bool
) -> tuple[str, ...]:
    """Return the codes from the root to the flip: what the cause made different, exactly, in the launches up to it.

    drifted: whether the logits differ up to the flip. A consequence of the cause that did not matter is among them too.
    """
    pairs = zip(lived(without)[: flip + 1], lived(with_cause)[: flip + 1], strict=False)
    found: set[str] = set()
    for (calm, row), (launch, other) in pairs:
        differs = {
            "effective_request_drift": row.ask.text != other.ask.text,
            "queue_pressure": launch.queue_depth > calm.queue_depth,
            "batch_recomposition": len(calm.rows) != len(launch.rows),
            "shape_class_change": (calm.tokens, calm.padded) != (launch.tokens, launch.padded),
            "fragment_misalignment": bool(calm.padded % 16) != bool(launch.padded % 16) and not launch.prefill,
            "algorithm_change": [one.algo for one in calm.works] != [one.algo for one in launch.works],
            "precision_path_change": [one.path for one in calm.works] != [one.path for one in launch.works],
            "graph_mode_change": calm.now.graph != launch.now.graph,
            "prefix_cache_hit": row.cached != other.cached,
            "preemption_recompute": other.resumed and not row.resumed,
            "workspace_infeasible": any(one.fallback_reason == "workspace" for one in launch.works)
            and not any(one.fallback_reason == "workspace" for one in calm.works),
        }
        found |= {code for code, is_so in differs.items() if is_so}
    first, last = lived(with_cause)[0][0].number, lived(with_cause)[flip][0].number
    if any(one.paging for one in with_cause if first <= one.number <= last):
        found.add("paging")
    middle = [code for code in ORDER if code in found and code not in roots]
    return (*roots[:1], *middle, *(["logit_drift"] if drifted else []), "token_flip")
