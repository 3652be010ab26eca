"""A kernel other than the preferred one ran: it fell back, was not the promised one, or ran on one rank alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.contrast import contrast, launches, odd_ranks
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.DEVICE
SEEN = "simulated only"
KERNEL = ("algo_id", "kernel_variant")


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare, on every rank and step by step up to the flip, whether the preferred kernel ran.

    It did not where a rank states a `fallback_reason`; where its `kernel_variant` is not the `expected_kernel_variant`
    of the engine record; where its `algo_id` or `kernel_variant` is not that of most of its peers (three ranks at
    least). What is so in both arms is no difference. A reason is written where it happened: absent in one arm alone, it
    is a difference. Where no reason is on record, but kernels are, a fallback shows as another kernel, and
    `algorithm_change` says so.

    Competitors of it as a cause of other kernels or logits: the launch shape, another environment. A workspace that did
    not fit brings it about.
    """
    ranks, arms = launches(incident), incident.arms()
    expected = {arm.identity[:2]: (arm.engine or {}).get("expected_kernel_variant") for arm in arms}
    written = any(
        arm.observes("batch", "fallback_reason")
        or any(record["fallback_reason"] for record in arm.ranks.iter_rows(named=True))
        for arm in arms
    )

    def read(row: Facts) -> Facts:
        records = ranks(row)
        stated = written or any(record[name] is not None for record in records for name in KERNEL)
        return {"fallback": _fallbacks(records, expected[row["run_id"], row["replica_id"]])} if stated else {}

    found = contrast(incident, read, absent={"fallback": ()})
    if not found.compared:
        yield Gap("kernel_fallback", "batch.fallback_reason", "whether a preferred kernel was not used")
    elif found.places:
        _, *rows = found.places[0]
        ours, theirs = ("; ".join(read(row)["fallback"]) if row else "" for row in rows)
        yield Finding(
            "kernel_fallback", RUNG,
            f"another kernel than the preferred one ran in one arm alone in {len(found.places)} of {found.compared} "
            f"compared steps up to the flip: first {ours or 'none'}, in the reference {theirs or 'none'}",
            found.onset, ours, theirs, steps=found.steps, citations=found.cite(incident),
        )  # fmt: skip


def _fallbacks(records: list[Facts], expected: str | None) -> tuple[str, ...]:
    """Return in words what ranks of one launch did not run as preferred."""
    said = []
    for record in records:
        rank = "" if record["rank"] is None else f"rank {record['rank']}: "
        if record["fallback_reason"] is not None:
            said.append(f"{rank}fallback {record['fallback_reason']!r}")
        if None not in (expected, record["kernel_variant"]) and record["kernel_variant"] != expected:
            said.append(f"{rank}{record['kernel_variant']!r} ran, {expected!r} is promised")
    for name in KERNEL:
        odd, usual = odd_ranks(records, name)
        said += [f"rank {rank} ran {name} {value!r}, most of its peers {usual!r}" for rank, value in odd.items()]
    return tuple(said)
