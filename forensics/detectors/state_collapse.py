"""Several degrees of freedom of the run got worse at one point: step time, memory, waiting, algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from forensics.change_point import ALPHA, shift, together
from forensics.findings import ADMISSION, Citation, Finding, Gap, Rung
from forensics.freedom import LEAST, TOGETHER, freedoms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.evidence import Evidence
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
    arms = incident.arms()
    known = [[one.fields for one in freedoms(_until(arm, last)) if not one.known] for arm, last in _lived(incident)]
    lacking = max(known, key=len)
    if len(lacking) > len(freedoms(arms[0].around.launches)) - TOGETHER:
        yield Gap("state_collapse", ", ".join(lacking), "whether the state of the run changed at one point")
        return
    (ours, frame), (theirs, _) = ((_collapse(_until(arm, last)), _until(arm, last)) for arm, last in _lived(incident))
    if ours is None or theirs is not None:
        return
    row = frame.row(ours.place, named=True)
    own = incident.lived()[0]
    after = own.filter(pl.col("engine_step") >= row["engine_step"])["step"].to_list()
    yield Finding(
        "state_collapse", RUNG,
        f"at engine step {row['engine_step']} of its run {len(ours.told)} degrees of freedom changed together for the "
        f"worse: {', '.join(ours.told)} (p {ours.p:.2g}, declared {ALPHA:g}); not so in the reference",
        after[0] if len(after) < own.height else ADMISSION, list(ours.told), [], how="derived",
        steps=tuple(after), citations=(Citation(row["source_path"], row["line"]),),
    )  # fmt: skip


def _lived(incident: Incident) -> list[tuple[Evidence, int]]:
    """Return both arms with the engine step of their last step that counts."""
    lasts = [lived["engine_step"].max() for lived in incident.lived()]
    return [(arm, last if isinstance(last, int) else -1) for arm, last in zip(incident.arms(), lasts, strict=True)]


def _until(arm: Evidence, last: int) -> pl.DataFrame:
    return arm.around.launches.filter(pl.col("engine_step") <= last)


def _collapse(launches: pl.DataFrame) -> Collapse | None:
    found = freedoms(launches)
    looked = [shift(one.series()) if one.known else None for one in found]
    worse = [one if one is not None and one.after - one.before >= LEAST else None for one in looked]
    joint = together(worse, TOGETHER)
    if joint is None or joint[1] > ALPHA:
        return None
    parts = [(found[place], one) for place in joint[0] if (one := worse[place]) is not None]
    told = tuple(freedom.told(one.before, one.after) for freedom, one in parts)
    return Collapse(min(parts, key=lambda part: part[1].p)[1].at, told, joint[1])
