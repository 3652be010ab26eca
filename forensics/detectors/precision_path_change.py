"""The arithmetic ran at another precision: another path, another dtype, more requantisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.contrast import contrast, differences, factors
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.PLAN
SEEN = "simulated only"
FIELDS = ("precision_path", "logit_dtype", "requant_cycles")
SWITCHES = ("gemm.reduced_precision_reduction", "gemm.fp16_accumulation", "gemm.fp32_precision")


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the executed precision path, dtypes and requantisation of each step.

    Where the target alone states its path, that is held against the path that its configuration promises. A path that
    was not promised and that both arms ran is no difference. Equal dtypes alone do not tell which path ran: without
    `precision_path` in both arms this is a gap.
    Competitors of it as a cause of other logits: the kernels, the weights, another environment.
    """
    found = contrast(incident, _path)
    if found.places:
        _, ours, theirs = found.places[0]
        one, other = _path(ours or {}), _path(theirs or {})
        promised = [
            f"the {name} left the path that its configuration promises, {arm.engine['expected_precision_path']!r}"
            for name, arm, facts in zip(("target", "reference"), incident.arms(), (one, other), strict=True)
            if arm.engine and arm.engine["expected_precision_path"] not in (None, facts.get("precision_path"))
            and "precision_path" in facts
        ]  # fmt: skip
        yield Finding(
            "precision_path_change", RUNG,
            f"another precision in {len(found.places)} of {found.compared} compared steps up to the flip: first "
            f"{'; '.join([differences(one, other), *promised])}",
            found.onset, one, other, steps=found.steps, citations=found.cite(incident),
        )  # fmt: skip
        return
    left = [list(_left(arm, steps)) for arm, steps in zip(incident.arms(), map(_rows, incident.lived()), strict=True)]
    known = [_states(rows) for rows in map(_rows, incident.lived())]
    if left[0] and not known[1]:
        path, expected = left[0][0]["precision_path"], (incident.target.engine or {})["expected_precision_path"]
        yield Finding(
            "precision_path_change", RUNG,
            f"the executed path is {path!r}, not {expected!r} as the configuration promises, in {len(left[0])} steps "
            "up to the flip; that of the reference is not on record",
            left[0][0]["step"], path, expected, how="inferred",
            steps=tuple(row["step"] for row in left[0]), citations=incident.target.cite(left[0][0]["step"]),
        )  # fmt: skip
    elif not all(known):
        yield Gap("precision_path_change", "batch.precision_path", "which precision path ran")


def _path(row: dict[str, Any]) -> Facts:
    facts = {name: row[name] for name in FIELDS if row[name] is not None}
    return facts | {
        name: value for name, value in factors(row).items() if name.startswith("dtype.") or name in SWITCHES
    }


def _rows(steps: Any) -> list[dict[str, Any]]:
    return list(steps.iter_rows(named=True))


def _states(rows: list[dict[str, Any]]) -> bool:
    return any(row["precision_path"] is not None for row in rows)


def _left(arm: Evidence, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    expected = (arm.engine or {}).get("expected_precision_path")
    return (row for row in rows if expected is not None and row["precision_path"] not in (None, expected))
