"""What the runtime was in, step by step: the article's two regime functions, spans of equal state, transitions.

Works on values that are already selected; never opens a store. `regimes.py` applies the functions to the records of a
run. Onsets and lengths are in steps of the request or of the run, whichever the frame is ordered by.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import polars as pl

Tests = tuple[tuple[str, bool | None], ...]
"""Regimes in the order of precedence, each with whether its test holds; None where an input is not on record."""


@dataclass(frozen=True)
class Thresholds:
    """Borders of the regimes; the defaults are the article's."""

    free_mb: float = 1024.0
    queue_p95_ms: float = 50.0
    evaporation_ratio: float = 0.05


@dataclass(frozen=True)
class Span:
    """A maximal run of steps in one state: `first` and `last` are positions, both included."""

    state: str
    first: int
    last: int

    @property
    def steps(self) -> int:
        """Return how many steps the span covers."""
        return self.last - self.first + 1


def regime(
    vram_free_mb: float | None,
    paging_on: bool | None,
    isolation_strict: bool | None,
    queue_p95_ms: float | None,
    limits: Thresholds = Thresholds(),
) -> str:
    """Return the regime of one step, as the article defines it; 'unknown' only if a missing input could change it."""
    return settled(regime_tests(vram_free_mb, paging_on, isolation_strict, queue_p95_ms, limits))


def regime_extended(
    vram_free_mb: float | None,
    paging_on: bool | None,
    isolation_strict: bool | None,
    queue_p95_ms: float | None,
    isr_pinned_mb: float | None,
    ckpt_pinned_mb: float | None,
    kv_pool_total_mb: float | None,
    limits: Thresholds = Thresholds(),
) -> str:
    """Return the regime with memory pinned for replication and checkpoints counted out (the article's second).

    Pins are never negative: free memory that is too little without them is too little with them.
    """
    pins = (isr_pinned_mb, ckpt_pinned_mb, kv_pool_total_mb)
    return settled(extended_tests(vram_free_mb, paging_on, isolation_strict, queue_p95_ms, *pins, limits))


def regime_tests(
    vram_free_mb: float | None,
    paging_on: bool | None,
    isolation_strict: bool | None,
    queue_p95_ms: float | None,
    limits: Thresholds,
) -> Tests:
    """Return the tests that `regime` makes."""
    return (
        ("isolation_strict", isolation_strict),
        ("paging", paging_on),
        ("memory_pressured", None if vram_free_mb is None else vram_free_mb < limits.free_mb),
        ("queue_degraded", None if queue_p95_ms is None else queue_p95_ms > limits.queue_p95_ms),
    )


def extended_tests(
    vram_free_mb: float | None,
    paging_on: bool | None,
    isolation_strict: bool | None,
    queue_p95_ms: float | None,
    isr_pinned_mb: float | None,
    ckpt_pinned_mb: float | None,
    kv_pool_total_mb: float | None,
    limits: Thresholds,
) -> Tests:
    """Return the tests that `regime_extended` makes."""
    exact = None not in (isr_pinned_mb, ckpt_pinned_mb)
    most = None if vram_free_mb is None else vram_free_mb - (isr_pinned_mb or 0) - (ckpt_pinned_mb or 0)

    def below(value: float | None, limit: float) -> bool | None:
        if value is None:
            return None
        return True if value < limit else False if exact else None

    if kv_pool_total_mb == 0:
        evaporated: bool | None = limits.evaporation_ratio > 1.0
    else:
        ratio = None if most is None or kv_pool_total_mb is None else most / kv_pool_total_mb
        evaporated = below(ratio, limits.evaporation_ratio)
    return (
        ("isolation_strict", isolation_strict),
        ("memory_evaporation", evaporated),
        ("paging", paging_on),
        ("memory_pressured", below(most, limits.free_mb)),
        ("queue_degraded", None if queue_p95_ms is None else queue_p95_ms > limits.queue_p95_ms),
    )


def settled(tests: Tests) -> str:
    """Return the first regime whose test holds. A test that cannot be made hides all that come after it."""
    for state, holds in tests:
        if holds is None:
            return "unknown"
        if holds:
            return state
    return "normal"


def at_worst(tests: Tests) -> str:
    """Return the regime if every test that cannot be made held: the same as `settled` unless that is unknown."""
    return next((state for state, holds in tests if holds or holds is None), "normal")


def spans(states: Iterable[Any]) -> list[Span]:
    """Return the maximal runs of equal states, positions counted from 0."""
    found: list[Span] = []
    for state, members in groupby(states):
        first = found[-1].last + 1 if found else 0
        found.append(Span("unknown" if state is None else str(state), first, first + sum(1 for _ in members) - 1))
    return found


@dataclass(frozen=True)
class Transition:
    """A change of regime. step: the request's own step at which the new one began; why: the inputs, before → after."""

    step: int
    before: str
    after: str
    why: str


DECIDES = {
    "isolation_strict": "regime_isolation_strict", "paging": "regime_paging_on", "memory_pressured": "regime_free_mb",
    "queue_degraded": "regime_queue_p95_ms",
}  # fmt: skip
"""Regime → the column of `Evidence.steps` whose value decides whether it holds."""
SAYS = {
    "regime_isolation_strict": "strict isolation {}", "regime_paging_on": "paging {}",
    "regime_free_mb": "free memory {} MiB", "regime_queue_p95_ms": "queue p95 {} ms", "regime_rank": "worst rank {}",
}  # fmt: skip


def transitions(steps: pl.DataFrame) -> list[Transition]:
    """Return every change of `regime` in a request's steps, in order, and what pushed it.

    steps: `Evidence.steps` or the part of it up to the flip. why names the inputs that decide the two regimes and the
    rank that speaks for the group, where they changed. A regime that held from the first step on is no transition.
    """
    rows = steps.to_dicts()
    return [
        Transition(row["step"], earlier["regime"] or "unknown", row["regime"] or "unknown", _pushed(earlier, row))
        for earlier, row in pairwise(rows)
        if (earlier["regime"] or "unknown") != (row["regime"] or "unknown")
    ]


def _pushed(earlier: dict[str, Any], row: dict[str, Any]) -> str:
    states = (earlier["regime"], row["regime"])
    unknown = "unknown" in states or None in states
    inputs = list(DECIDES.values()) if unknown else [DECIDES[state] for state in states if state in DECIDES]
    changed = [name for name in dict.fromkeys([*inputs, "regime_rank"]) if earlier[name] != row[name]]
    said = [SAYS[name].format(f"{_value(earlier[name])} → {_value(row[name])}") for name in changed]
    return ", ".join(said) or "no input on record changed"


def _value(value: float | bool | None) -> str:
    if value is None:
        return "not on record"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value:g}"


def shape_class(row: dict[str, Any]) -> str:
    """Return (launch tokens, request rows, padded size, graph key) as text; '?' for what is not on record.

    Two classes may still run the same kernels: only a measured map may merge them.
    """
    parts = (row.get("batch_tokens"), row.get("batch_size"), row.get("padded_tokens"), row.get("graph_mode"))
    tokens, size, padded, graph = ("?" if part is None else part for part in parts)
    return f"tokens={tokens} rows={size} padded={padded} graph={graph}"
