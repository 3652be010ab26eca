"""Values went through more rounds of dequantising and quantising, or did so on some ranks alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.contrast import contrast, launches, odd_ranks
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.DEVICE
SEEN = "simulated only"
UNQUANTISED = ("none", "bf16", "bfloat16", "fp16", "float16", "half", "fp32", "float32", "tf32")
"""Methods and paths in which nothing is quantised, so that nothing can be quantised again."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare `requant_cycles` of every rank step by step, and whether the ranks of a launch are at one.

    A rank whose cycles or `precision_path` are not those of most of its peers (three ranks at least), in one arm alone,
    is a finding too, and the path that the configuration promises is named beside it. Which path ran in which arm is
    `precision_path_change`, which this brings about. Where both arms state an unquantised path in every step, or an
    engine without quantisation, there is nothing to quantise again.

    Competitors of it as a cause of other logits: the kernels, the launch shape (from which a runtime may choose to
    dequantise first), other weights.
    """
    ranks = launches(incident)
    found = contrast(incident, lambda row: _cycles(ranks(row)))
    if found.places:
        _, *rows = found.places[0]
        ours, theirs = (_says(ranks(row)) if row else "no such step" for row in rows)
        promised = {(arm.engine or {}).get("expected_precision_path") for arm in incident.arms()} - {None}
        promise = f"; promised is {', '.join(sorted(map(repr, promised)))}" if promised else ""
        yield Finding(
            "requantization", RUNG,
            f"quantised again otherwise in {len(found.places)} of {found.compared} compared steps up to the flip: "
            f"first {ours}, in the reference {theirs}{promise}",
            found.onset, ours, theirs, steps=found.steps, citations=found.cite(incident),
        )  # fmt: skip
    elif not contrast(incident, lambda row: _counted(ranks(row))).compared and not all(
        map(_unquantised, incident.arms())
    ):
        yield Gap("requantization", "batch.requant_cycles", "whether values were quantised again")


def _counted(records: list[Facts]) -> Facts:
    stated = [record["requant_cycles"] for record in records if record["requant_cycles"] is not None]
    return {"requant_cycles": max(stated)} if stated else {}


def _cycles(records: list[Facts]) -> Facts:
    apart = {
        f"ranks apart in {name}": sorted(odd_ranks(records, name)[0])
        for name in ("requant_cycles", "precision_path")
        if any(record[name] is not None for record in records)
    }
    return _counted(records) | apart


def _says(records: list[Facts]) -> str:
    said = [f"{count} cycles" for count in _counted(records).values()]
    for name in ("requant_cycles", "precision_path"):
        odd, usual = odd_ranks(records, name)
        said += [f"rank {rank} with {name} {value!r}, most of its peers {usual!r}" for rank, value in odd.items()]
    return ", ".join(said) or "not on record"


def _unquantised(arm: Evidence) -> bool:
    if (arm.engine or {}).get("quantization") in UNQUANTISED:
        return True
    paths = arm.steps["precision_path"]
    return not paths.is_empty() and all(path in UNQUANTISED for path in paths)
