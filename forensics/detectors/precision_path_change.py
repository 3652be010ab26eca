"""The arithmetic ran at another precision: another path, another dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.contrast import contrast, differences, factors
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.PLAN
SEEN = "simulated only"
FIELDS = ("precision_path", "logit_dtype")
SWITCHES = ("gemm.reduced_precision_reduction", "gemm.fp16_accumulation", "gemm.fp32_precision")


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the executed precision path and dtypes of each step, between the arms; ranks apart: `requantization`.

    Where the target alone states its path, that is held against the path that its configuration promises. A path that
    was not promised and that both arms ran is no difference. Equal dtypes alone do not tell which path ran: without
    `precision_path` in both arms this is a gap.
    Competitors of it as a cause of other logits: the kernels, requantisation, the weights, another environment.
    """
    found = contrast(incident, _path)
    expected = (incident.target.engine or {}).get("expected_precision_path")
    ours, theirs = (steps.drop_nulls("precision_path") for steps in incident.lived())
    left = ours.filter(pl.col("precision_path") != pl.lit(expected))["step"].to_list()  # none where nothing is promised
    if found.places:
        _, one, other = found.places[0]
        promise = f"; the target's configuration promises {expected!r}" if expected else ""
        yield Finding(
            "precision_path_change", RUNG,
            f"another precision in {len(found.places)} of {found.compared} compared steps up to the flip: first "
            f"{differences(_path(one or {}), _path(other or {}))}{promise}",
            found.onset, _path(one or {}), _path(other or {}), steps=found.steps, citations=found.cite(incident),
        )  # fmt: skip
    elif left and theirs.is_empty():
        ran = ours.filter(pl.col("step") == left[0])["precision_path"][0]
        yield Finding(
            "precision_path_change", RUNG,
            f"in {len(left)} steps up to the flip the executed path is not {expected!r} as the configuration promises: "
            f"first {ran!r}; that of the reference is not on record",
            left[0], ran, expected, how="inferred",
            steps=tuple(left), citations=incident.target.cite(left[0]),
        )  # fmt: skip
    elif ours.is_empty() or theirs.is_empty():
        yield Gap("precision_path_change", "batch.precision_path", "which precision path ran")


def _path(row: dict[str, Any]) -> Facts:
    facts = {name: row[name] for name in FIELDS if row[name] is not None}
    return facts | {
        name: value for name, value in factors(row).items() if name.startswith("dtype.") or name in SWITCHES
    }
