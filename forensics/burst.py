"""Who arrived around the life of a request: what a burst is counted in, and what a run is thought without."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from forensics.evidence import Evidence


class Window(NamedTuple):
    """start, end: Unix seconds. others: how many other requests arrived in it."""

    start: float
    end: float
    others: int

    @property
    def rate(self) -> float:
        """Return arrivals a second."""
        return self.others / (self.end - self.start)


def around(arm: Evidence, lived: pl.DataFrame) -> Window | None:
    """Return one lifetime before the request until the end of `lived`; None where times are not on record."""
    arrived, last = arm.request["arrival_ts"], lived["ts"].max()
    if arrived is None or not isinstance(last, int | float) or last <= arrived:
        return None
    start = max(
        arrived - (last - arrived), *arm.around.arrivals["arrival_ts"].head(1)
    )  # before the run nobody could arrive
    return Window(start, last, len(came(arm, start, last)))


def came(arm: Evidence, start: float, end: float) -> list[str]:
    """Return the other requests that arrived in a window."""
    others = pl.col("req_id") != arm.request["req_id"]
    return arm.around.arrivals.filter(others & pl.col("arrival_ts").is_between(start, end))["req_id"].to_list()
