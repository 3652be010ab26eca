"""Several degrees of freedom of the run got worse at one point: step time, memory, waiting, algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from forensics.change_point import ALPHA, shift, together
from forensics.findings import ADMISSION, Citation, Finding, Gap, Rung
from forensics.freedom import LEAST, TOGETHER, freedoms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.SCHEDULER
SEEN = "simulated only"


class Collapse(NamedTuple):
    """place: of the first launch after it. told: what changed, in words. p: that fewer than TOGETHER changed."""

    place: int
    told: tuple[str, ...]
    p: float


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Look for one change point over several degrees of freedom in the launches up to the flip, not in the reference's.

    Each degree of freedom is a residual with the workload taken out (`freedom.py`), so other work alone moves none.
    Each has its own test that knows of autocorrelation, and at least TOGETHER must have changed by LEAST for the worse
    within a twentieth of the launches, at a partial-conjunction p of at most ALPHA (`change_point.py`, with sources).
    ALPHA is the declared rate of false alarms a look; tests/test_false_alarms.py measures it.

    It says when the state of the run turned, not why: it stands beside the chain. Its competitors are its own parts,
    each of which has a detector, and a change of work that the classes of work do not tell apart.
    """
    ours, theirs = _until_the_flip(incident)
    lacking = max(([one.fields for one in freedoms(part) if not one.known] for part in (ours, theirs)), key=len)
    if len(lacking) > len(freedoms(ours)) - TOGETHER:
        yield Gap("state_collapse", ", ".join(lacking), "whether the state of the run changed at one point")
        return
    found = collapse(ours)
    if found is None or collapse(theirs) is not None:
        return
    row = ours.row(found.place, named=True)
    own = incident.lived()[0]
    after = own.filter(pl.col("engine_step") >= row["engine_step"])["step"].to_list()
    yield Finding(
        "state_collapse", RUNG,
        f"at engine step {row['engine_step']} of its run {len(found.told)} degrees of freedom changed together for the "
        f"worse: {', '.join(found.told)} (p {found.p:.2g}, declared {ALPHA:g}); not so in the reference",
        after[0] if len(after) < own.height else ADMISSION, list(found.told), [], how="derived",
        steps=tuple(after), citations=(Citation(row["source_path"], row["line"]),),
    )  # fmt: skip


def _until_the_flip(incident: Incident) -> list[pl.DataFrame]:
    """Return the launches of both arms up to that of the last step that counts."""
    ends = [lived["engine_step"].max() for lived in incident.lived()]
    return [
        arm.around.launches.filter(pl.col("engine_step") <= end) for arm, end in zip(incident.arms(), ends, strict=True)
    ]


def collapse(launches: pl.DataFrame) -> Collapse | None:
    """Return where several degrees of freedom changed together for the worse; None where they did not."""
    found = freedoms(launches)
    looked = [shift(one.series()) if one.known else None for one in found]
    worse = [one if one is not None and one.after - one.before >= LEAST else None for one in looked]
    joint = together(worse, TOGETHER)
    if joint is None or joint[1] > ALPHA:
        return None
    parts = [(found[place], one) for place in joint[0] if (one := worse[place]) is not None]
    told = tuple(freedom.told(one.before, one.after) for freedom, one in parts)
    return Collapse(min(parts, key=lambda part: part[1].p)[1].at, told, joint[1])
