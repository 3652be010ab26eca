"""The tokens of a launch left another remainder beside full fragments of the matrix units."""

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
ROWS = 16
"""Rows of M that one fragment covers: mma.sync.m16n8k16, the tensor-core instruction for 16-bit inputs (PTX ISA, "Warp
Level Matrix Instructions"). A kernel that puts tokens on its N side counts in eights: another remainder."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare M mod 16 of each step, where M (padded tokens, else launch tokens) fills more than one fragment.

    A launch of up to 16 rows is one fragment, however full, and has no remainder. Rows of the last fragment that hold
    nothing are waste: padding / (16 * fragments). Padding as such changes no bit of the other rows, but a remainder can
    make the library take another kernel, and that is all that follows from it. A CPU has no tensor cores: where an arm
    ran on one, nothing is looked at.

    Competitors of it as a cause of another kernel: the rest of the launch shape, which it is a part of.
    """
    types = [(arm.engine or {}).get("device_type") for arm in incident.arms()]
    if "cpu" in types:
        return
    if None in types:
        yield Gap("fragment_misalignment", "engine.device_type", "whether the matrix units count in fragments of 16")
        return
    found = contrast(incident, _remainder)
    if not found.compared:
        yield Gap("fragment_misalignment", "batch.batch_tokens", "how the launches filled fragments of 16 rows")
    elif found.places:
        _, *rows = found.places[0]
        ours, theirs = (_says(row) if row else "no such step" for row in rows)
        left = [_remainder(row).get("remainder") if row else None for row in rows]
        yield Finding(
            "fragment_misalignment", RUNG,
            f"another remainder beside full fragments of {ROWS} rows in {len(found.places)} of {found.compared} "
            f"compared steps up to the flip: first {ours}, in the reference {theirs}",
            found.onset, left[0], left[1], how="derived", steps=found.steps, citations=found.cite(incident),
        )  # fmt: skip


def _rows(row: Facts) -> Any:
    return row["batch_tokens"] if row["padded_tokens"] is None else row["padded_tokens"]


def _remainder(row: Facts) -> Facts:
    m = _rows(row)
    return {} if m is None else {"remainder": m % ROWS if m > ROWS else 0}


def _says(row: Facts) -> str:
    m = _rows(row) or 0
    fragments = -(-m // ROWS)
    return f"M={m} in {fragments} fragments with {1 - m / (ROWS * fragments):.0%} padding" if m else "no tokens"
